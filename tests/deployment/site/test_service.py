"""The answers of a site, compared with what the same clients do in a simulation."""

from __future__ import annotations

import errno
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.deployment.talk import DIGITS, RUN, ask, describe, entry, prepare, service, train, trainee, write_images
from tests.small import CONVOLUTIONAL, SMALL

from fedelta.assembly.run import Assembly, assemble
from fedelta.codecs.cast import Cast
from fedelta.codecs.wire import decode, encode
from fedelta.config import parse_config
from fedelta.deployment.site.run_folders import RunFolders
from fedelta.deployment.site.service import Service
from fedelta.federation.records import Reply
from fedelta.params import Params, select
from fedelta.runtimes.remote.messages import Message, pack
from fedelta.strategies.base import RoundPlan

OURS = (0, 2, 3)
PART = [[number, number] for number in OURS]


def simulated(text: str) -> Assembly:
    """The same clients in one process, trained together as those of a message to a site are."""
    assembly = assemble(parse_config(tomllib.loads(f"{text}\n[runtime]\nlanes = {len(OURS)}\n")))
    return replace(assembly, site=replace(assembly.site, places=1))


def download(assembly: Assembly, params: Params | None = None) -> bytes:
    """The payload of all shared tensors, with the zeros that a strategy sends beside them before round 1."""
    state = assembly.strategy.init(assembly.params, assembly.spec)
    names = assembly.federation.wire.shared
    return encode(select({**state, **(params or assembly.params)}, names), assembly.federation.wire, codec(assembly))[0]


def codec(assembly: Assembly):
    return assembly.config.codec.down


def replies(assembly: Assembly, round: int, payload: bytes, names: tuple[str, ...]) -> Mapping[int, Reply]:
    """What the clients of the site reply in a simulation."""
    plan = RoundPlan(round, dict.fromkeys(OURS, ()), dict.fromkeys(OURS, names), 6)
    return {reply.client_id: reply for reply in assembly.site.run(plan, dict.fromkeys(OURS, payload))}


def started(folder: Path, text: str, **settings: object) -> Service:
    """A service that has been told its part of a run."""
    site = service(folder, clients=list(OURS), **settings)
    assert describe(site, text).kind == "described"
    assert prepare(site, PART).kind == "prepared"
    return site


@pytest.fixture(scope="module")
def small() -> Assembly:
    return simulated(SMALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Service:
    return started(tmp_path_factory.mktemp("site"), SMALL)


@pytest.fixture(scope="module")
def names(small) -> tuple[str, ...]:
    return small.spec.shared


def reason(answer: Message) -> str:
    assert answer.kind == "refused", answer
    return str(answer.manifest["reason"])


def test_a_site_tells_its_clients_and_how_much_they_have(site, small):
    answer = describe(site, SMALL)
    sizes = [{"key": number, "num_examples": len(small.data.partition[number])} for number in OURS]
    assert answer.manifest["clients"] == sizes
    assert answer.manifest["class_names"] == list(DIGITS)
    assert (answer.manifest["is_natural"], answer.manifest["num_test_examples"]) == (False, 60)
    assert prepare(site, PART).kind == "prepared"


BALANCED = f'{SMALL}\n[task]\nname = "classification"\nclass_weights = "balanced"\n'


def test_a_site_shares_sums_over_its_clients_where_the_task_needs_them(tmp_path, small):
    site = service(tmp_path, clients=list(OURS))
    assert describe(site, SMALL).manifest["statistics"] == {}
    statistics = describe(site, BALANCED).manifest["statistics"]
    labels = small.data.train.targets.fetch(torch.cat([small.data.partition[number] for number in OURS]))
    expected = {f"rows of {name}": (int((labels == label).sum()), len(labels)) for label, name in enumerate(DIGITS)}
    assert {name: tuple(pair) for name, pair in statistics.items()} == expected


def test_a_site_trains_by_the_task_that_the_server_has_settled(tmp_path):
    site = service(tmp_path, clients=list(OURS))
    describe(site, BALANCED)
    weights = {name: 1.0 + label for label, name in enumerate(DIGITS)}
    answer = prepare(site, PART, task={"name": "classification", "class_weights": weights})
    assert answer.kind == "prepared"
    assert site._kept["deployed"][1].site.engine.task.class_weights == weights
    assert "no valid section" in reason(prepare(site, PART, task={"name": "classification", "class_weights": 3}))
    assert "the server's task is 'tokens'" in reason(prepare(site, PART, task={"name": "tokens"}))


def test_a_site_has_the_model_of_the_server(site, small):
    answer = prepare(site, PART)
    assert answer.manifest["fingerprint"] == small.federation.wire.fingerprint.hex()
    assert answer.manifest["identity"] == dict(small.model.identity)
    assert (answer.manifest["task"], answer.manifest["device"]) == ("classification", "cpu")


def test_clients_of_a_site_give_the_bits_of_a_simulation(site, small, names):
    payload = download(small)
    answer = train(site, 1, [trainee(number) for number in OURS], names, [payload])
    assert answer.kind == "trained"
    expected = replies(small, 1, payload, names)
    for number in OURS:
        of_client = entry(answer, number)
        assert of_client["payload"] == expected[number].payload
        assert of_client["train_loss"] == expected[number].metrics["train_loss"]
        assert of_client["num_examples"] == expected[number].num_examples
        assert (of_client["version"], of_client["fault"]) == (0, None)


def test_a_message_that_comes_again_is_not_worked_on_again(site, small, names, monkeypatch):
    clients = [trainee(2)]
    first = train(site, 2, clients, names, [download(small)])
    monkeypatch.setattr("fedelta.deployment.site.service.trained", None)
    assert train(site, 2, clients, names, [download(small)]) == first


def test_a_service_that_starts_anew_goes_on_with_the_run(site, small, names):
    clients = [trainee(number) for number in OURS]
    first = train(site, 3, clients, names, [download(small)])
    again = train(Service(site.settings), 3, clients, names, [download(small)])
    assert again == first


def test_a_second_run_with_the_same_part_has_data_and_model_at_once(site, monkeypatch):
    kept = prepare(site, PART)
    for name in ("read_raw", "deploy"):
        monkeypatch.setattr(f"fedelta.deployment.site.service.{name}", None)
    message = {"class_names": list(DIGITS), "clients": PART, "depths": None, "num_clients": 6}
    record = RunFolders(Path(site.settings.state) / "runs").read(RUN)
    assert record is not None
    RunFolders(Path(site.settings.state) / "runs").write("run 2", record)
    assert ask(site, "prepare", message | {"run": "run 2"}) == kept


def test_measures_of_a_site_are_sums_over_its_test_rows(site, small):
    payload, _ = encode(select(small.params, small.spec.shared), small.federation.wire, Cast())
    answer = ask(site, "evaluate", {"round": 1, "clients": []}, [payload])
    measures = {name: total / weight for name, (total, weight) in answer.manifest["sums"][0].items()}
    assert measures == small.evaluate(small.params).measures
    assert answer.manifest["num_examples"] == 60


@pytest.mark.parametrize(
    ("kind", "manifest", "problem"),
    [
        ("dance", {}, "a message of the kind 'dance' is not known"),
        ("train", {}, "a message `train` cannot be used: `round` is missing"),
        ("train", {"round": True}, "`round` is True: Input should be a valid integer"),
        ("train", {"round": 2**40}, "`round` is 1099511627776: Input should be less than"),
        ("train", {"clients": []}, "`clients` is []"),
        ("train", {"clients": [trainee(2), trainee(2)]}, "expected each client once"),
        ("train", {"clients": [trainee(1)]}, "client 1 is not one of this site's 3 clients"),
        ("train", {"clients": [trainee(2, download=7)]}, "refers to blob 7, but has 1"),
        ("train", {"clients": [trainee(2, upload=1)]}, "refers to upload 1, but has 1"),
        ("train", {"clients": [trainee(2, version=4)]}, "expects a memory from round 4, which is later"),
        ("train", {"uploads": [["bias"]]}, "asks for the tensor 'bias', which the site has not"),
        ("train", {"uploads": "names"}, "`uploads` is 'names'"),
        ("train", {"run": ""}, "`run` is '': String should have at least 1 character"),
        ("prepare", {"clients": [[0, 1]], "class_names": list(DIGITS)}, "does not have the clients 1"),
        ("prepare", {"clients": [[0, 0], [0, 2]], "class_names": list(DIGITS)}, "expected each client once"),
        ("prepare", {"clients": [[0, 0]], "class_names": [*DIGITS, "fox"]}, "lacks 1 of the federation's 11 classes"),
        ("prepare", {"clients": [[0, 0]], "class_names": list("012345678")}, "does not have: '9'"),
        ("evaluate", {"round": 1}, "refers to blob 0, but has 0"),
    ],
)
def test_what_a_site_cannot_follow_it_refuses_with_the_reason(site, small, names, kind, manifest, problem):
    whole = {
        "train": {"round": 2, "num_clients": 6, "uploads": [list(names)], "clients": [trainee(2)]},
        "prepare": {"num_clients": 6, "depths": None},
    }
    blobs = [] if kind != "train" else [download(small)]
    manifest = manifest if kind == "train" and not manifest else whole.get(kind, {}) | manifest
    assert problem in reason(ask(site, kind, manifest, blobs))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda payload: b"", "are not a fedelta payload"),
        (lambda payload: payload[:-1] + b"\x00", "its checksum is wrong"),
        (lambda payload: payload[:5] + bytes(8) + payload[13:], "its checksum is wrong"),
    ],
)
def test_a_damaged_download_is_the_fault_of_its_clients_only(site, small, names, damage, problem):
    payload = download(small)
    clients = [trainee(0), trainee(2, download=1)]
    answer = train(site, 1, clients, names, [payload, damage(payload)])
    assert problem in entry(answer, 2)["fault"]["reason"]
    assert entry(answer, 2)["payload"] is None
    assert entry(answer, 0)["payload"] == replies(small, 1, payload, names)[0].payload


def test_a_run_that_the_site_has_not_been_told_of_is_refused_as_such(tmp_path, names):
    answer = train(service(tmp_path, clients=list(OURS)), 1, [trainee(2)], names, [b""])
    assert "does not know the run 'run 1'" in reason(answer)
    assert answer.manifest["cause"] == "unprepared"


def test_another_version_of_fedelta_is_refused_naming_both(tmp_path):
    answer = ask(service(tmp_path), "describe", {"protocol": 7, "version": "9.9", "config": SMALL})
    assert "the server has fedelta 9.9 and messages of form 7, this site has fedelta" in reason(answer)
    assert "the same version" in answer.manifest["hint"]


def test_an_error_in_the_program_tells_the_server_its_kind_and_the_log_all_of_it(site, monkeypatch, caplog):
    def fail(*args: object) -> None:
        raise ZeroDivisionError("/home/ann/secret.csv")

    monkeypatch.setattr("fedelta.deployment.site.service.deploy", fail)
    answer = prepare(site, PART[:1])
    assert reason(answer) == "the site failed at a message 'prepare' because of an error of the kind ZeroDivisionError"
    assert "/home/ann/secret.csv" in caplog.text
    assert "Traceback" in caplog.text


SCAFFOLD = SMALL.replace('name = "fedavg"', 'name = "scaffold"')


class Scaffolding:
    """Rounds of SCAFFOLD, whose clients remember control variates, at a site and in a simulation beside it."""

    def __init__(self, folder: Path) -> None:
        self.site = started(folder, SCAFFOLD)
        self.assembly = simulated(SCAFFOLD)
        self.names = self.assembly.federation.wire.shared
        self.payload = download(self.assembly)

    def ask(self, round: int, versions: Mapping[int, int]) -> Message:
        clients = [trainee(number, version) for number, version in versions.items()]
        return train(self.site, round, clients, self.names, [self.payload])

    def simulate(self, round: int, accepted: tuple[int, ...] = OURS) -> Mapping[int, Reply]:
        expected = replies(self.assembly, round, self.payload, self.names)
        self.assembly.site.accept(accepted)
        return expected

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in Path(self.site.settings.state).glob("runs/*/memory/*"))


@pytest.fixture
def scaffolding(tmp_path) -> Scaffolding:
    return Scaffolding(tmp_path)


def test_what_clients_remember_is_what_they_had_when_their_reply_was_accepted(scaffolding):
    first = scaffolding.ask(1, dict.fromkeys(OURS, 0))
    assert [entry(first, number)["version"] for number in OURS] == [1, 1, 1]
    scaffolding.simulate(1, accepted=(0, 2))  # the server did not accept the reply of client 3
    second = scaffolding.ask(2, {0: 1, 2: 1, 3: 0})
    expected = scaffolding.simulate(2)
    assert all(entry(second, number)["payload"] == expected[number].payload for number in OURS)
    assert scaffolding.files == [
        f"{client}-{round}.memory" for client, round in [(0, 1), (0, 2), (2, 1), (2, 2), (3, 2)]
    ]


def test_a_server_that_goes_back_to_its_checkpoint_gets_the_same_bits(scaffolding):
    scaffolding.ask(1, dict.fromkeys(OURS, 0))
    second = scaffolding.ask(2, dict.fromkeys(OURS, 1))
    # Both were killed in round 2, after the site had answered.
    scaffolding.site = Service(scaffolding.site.settings)
    assert scaffolding.ask(2, dict.fromkeys(OURS, 1)) == second
    scaffolding.ask(3, dict.fromkeys(OURS, 2))
    assert scaffolding.files == [f"{client}-{round}.memory" for client in OURS for round in (2, 3)]


def test_a_client_whose_memory_is_lost_says_so_and_the_others_train(scaffolding):
    scaffolding.ask(1, dict.fromkeys(OURS, 0))
    scaffolding.simulate(1)
    next(Path(scaffolding.site.settings.state).glob("runs/*/memory/2-1.memory")).unlink()
    answer = scaffolding.ask(2, dict.fromkeys(OURS, 1))
    assert entry(answer, 2)["fault"] == {
        "reason": "the site no longer has what the client remembers",
        "cause": "forgot",
    }
    expected = scaffolding.simulate(2)
    assert entry(answer, 0)["payload"] == expected[0].payload
    assert entry(scaffolding.ask(2, {2: 0}), 2)["fault"] is None


def test_a_client_that_forgot_gets_back_what_it_remembered_for_the_strategy(scaffolding):
    scaffolding.ask(1, dict.fromkeys(OURS, 0))
    scaffolding.simulate(1)
    remembered = scaffolding.assembly.site.memory_of(2).remembered
    copy, _ = encode(remembered, scaffolding.assembly.federation.wire, Cast())
    clients = [trainee(0, 1), trainee(2, remembered=1), trainee(3, 1)]
    answer = train(scaffolding.site, 2, clients, scaffolding.names, [scaffolding.payload, copy])
    assert entry(answer, 2)["payload"] == scaffolding.simulate(2)[2].payload
    part, _ = encode(dict(list(remembered.items())[1:]), scaffolding.assembly.federation.wire, Cast())
    answer = train(scaffolding.site, 2, [trainee(2, remembered=1)], scaffolding.names, [scaffolding.payload, part])
    assert "tensors do not fit: lacks" in reason(answer)


def test_a_full_disk_is_a_fault_of_the_clients_and_loses_nothing(scaffolding, monkeypatch):
    scaffolding.ask(1, dict.fromkeys(OURS, 0))

    def full(descriptor: int, content: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        answer = scaffolding.ask(2, dict.fromkeys(OURS, 1))
    reasons = {entry(answer, number)["fault"]["reason"] for number in OURS}
    assert reasons == {"the site cannot write what the client remembers: No space left on device"}
    assert entry(answer, 0)["fault"]["cause"] == "site failed"
    assert scaffolding.files == ["0-1.memory", "2-1.memory", "3-1.memory"]
    scaffolding.simulate(1)
    again = scaffolding.ask(2, dict.fromkeys(OURS, 1))
    assert entry(again, 0)["payload"] == scaffolding.simulate(2)[0].payload


def test_a_finished_run_is_forgotten(scaffolding):
    scaffolding.ask(1, dict.fromkeys(OURS, 0))
    assert ask(scaffolding.site, "finish", {}).kind == "finished"
    assert scaffolding.files == []
    assert scaffolding.ask(2, dict.fromkeys(OURS, 1)).manifest["cause"] == "unprepared"


def test_a_client_that_was_left_out_of_a_round_drops_what_it_has_adrift(tmp_path, small, names):
    site, payload = started(tmp_path, SMALL), download(small)
    train(site, 1, [trainee(0)], names[2:], [payload])  # the first two tensors stay with the client
    head = encode(select(small.params, names[2:]), small.federation.wire, codec(small))[0]
    kept = train(site, 2, [trainee(0, 1)], names, [head])
    assert len(decode(entry(kept, 0)["payload"], small.federation.wire, codec(small))[0]) == len(names)
    dropped = train(site, 2, [trainee(0, 1, keeps_adrift=False)], names, [head])
    assert "2 of" in entry(dropped, 0)["fault"]["reason"]
    whole = train(site, 2, [trainee(0, 1, keeps_adrift=False)], names, [payload])
    assert entry(whole, 0)["payload"] == replies(small, 2, payload, names)[0].payload


def test_clients_with_norms_of_their_own_are_measured_each_with_its_own(tmp_path):
    text = CONVOLUTIONAL.replace("[model.architecture]", '[model]\nbatch_norm = "local"\n\n[model.architecture]')
    assembly = simulated(text)
    site, names, payload = started(tmp_path, text), assembly.spec.shared, download(assembly)
    train(site, 1, [trainee(number) for number in OURS], names, [payload])
    replies(assembly, 1, payload, names)
    assembly.site.accept(OURS)
    model, _ = encode(select(assembly.params, names), assembly.federation.wire, Cast())
    standing = [{"id": number, "version": 1} for number in OURS]
    answer = ask(site, "evaluate", {"round": 1, "clients": standing}, [model])
    assert answer.manifest["num_examples"] == 3 * 60
    expected = assembly.evaluate(assembly.params).measures
    total, weight = answer.manifest["sums"][0]["loss_nats"]
    assert total / weight == pytest.approx(expected["loss_nats"], rel=1e-12)
    ask(site, "finish", {})
    assert list(Path(site.settings.state).glob("runs/*/memory/*")), "the clients' norms belong to the finished model"


def test_clients_of_different_depth_hold_what_those_of_a_simulation_do(tmp_path):
    text = SMALL.replace('name = "lora"\nr = 2', 'name = "exit-heads"') + "\n[exits]\ntiers = [1, 2]\n"
    assembly = simulated(text)
    assert assembly.tiers is not None
    site = service(tmp_path, clients=list(OURS))
    describe(site, text)
    depths = [[number, assembly.tiers.depths[number]] for number in OURS]
    assert prepare(site, PART, depths=depths).manifest["fingerprint"] == assembly.federation.wire.fingerprint.hex()
    number = next(number for number in OURS if assembly.tiers.depths[number] == 1)
    names = tuple(name for name in assembly.spec.shared if assembly.tiers.owns(number, name))
    payload, _ = encode(select(assembly.params, names), assembly.federation.wire, codec(assembly))
    answer = train(site, 1, [trainee(number)], names, [payload])
    plan = RoundPlan(1, {number: ()}, {number: names}, 6)
    (expected,) = assembly.site.run(plan, {number: payload})
    assert entry(answer, number)["payload"] == expected.payload
    assert "depth is 9, but the model of this site has 2 exits" in reason(prepare(site, PART[:1], depths=[[0, 9]]))


OWN = SMALL.replace("max_train_examples = 120\nmax_test_examples = 60\n", "")


def own_site(folder: Path, labels: str, column: str = "label", **settings: object) -> Service:
    """A site with images of its own, two clients of which its data name."""
    rows = [{column: label, "ward": f"ward {index % 2}"} for index, label in enumerate(labels)]
    write_images(folder / "rows.jsonl", rows)
    data = {"source": str(folder / "rows.jsonl"), "test_fraction": 0.25}
    return service(folder, data=data | settings.pop("data", {}), **settings)


def test_a_site_with_data_of_its_own_is_one_client_with_its_name(tmp_path):
    answer = describe(own_site(tmp_path, "cat" * 8), OWN)
    assert answer.manifest["class_names"] == ["a", "c", "t"]
    assert answer.manifest["clients"] == [{"key": "hamburg", "num_examples": 18}]
    assert (answer.manifest["is_natural"], answer.manifest["num_test_examples"]) == (True, 6)


def test_clients_that_the_data_name_keep_their_names_and_get_numbers(tmp_path, small):
    site = own_site(tmp_path, "cat" * 8, data={"client_column": "ward"})
    offered = describe(site, OWN).manifest["clients"]
    assert [client["key"] for client in offered] == ["ward 0", "ward 1"]
    assert prepare(site, [[5, "ward 1"], [3, "ward 0"]], "cat").kind == "prepared"
    answer = ask(site, "evaluate", {"round": 0, "clients": []}, [b""])
    assert "are not a fedelta payload" in reason(answer)
    assert sorted(site._kept["deployed"][1].site.partition) == [3, 5]


def test_labels_are_numbered_as_in_the_whole_federation(tmp_path):
    site = own_site(tmp_path, "tac" * 8)
    describe(site, OWN)
    assert prepare(site, [[0, "hamburg"]], "tac").kind == "prepared"
    data = site._kept["raw"][1]
    labels = data.train.targets.fetch(torch.arange(len(data.train)))
    assert ["tac"[label] for label in labels] == [data.train.dataset["label"][row] for row in range(len(data.train))]


def test_a_class_that_the_server_does_not_know_is_refused_by_name(tmp_path):
    site = own_site(tmp_path, "catx" * 6)
    describe(site, OWN)
    text = reason(prepare(site, [[0, "hamburg"]], "cat"))
    assert "1 classes that the federation does not have: 'x'; expected 'c', 'a', 't'" in text
    assert str(tmp_path) not in text


def test_classes_that_a_site_lacks_are_refused_unless_it_may(tmp_path):
    site = own_site(tmp_path, "ca" * 8)
    describe(site, OWN)
    assert "lacks 1 of the federation's 3 classes: 't'" in reason(prepare(site, [[0, "hamburg"]], "cat"))
    allowed = own_site(tmp_path, "ca" * 8, allow_missing_classes=True)
    assert describe(allowed, OWN).manifest["class_names"] == ["a", "c"]
    assert prepare(allowed, [[0, "hamburg"]], "cat").kind == "prepared"


def test_a_site_with_one_class_may_take_part_if_it_says_so(tmp_path):
    assert "has only one class" in reason(describe(own_site(tmp_path, "c" * 8), OWN))
    site = own_site(tmp_path, "c" * 8, allow_missing_classes=True)
    assert describe(site, OWN).manifest["class_names"] == ["c"]
    assert prepare(site, [[0, "hamburg"]], "cat").kind == "prepared"


def test_a_column_that_is_missing_is_refused_without_telling_what_the_data_hold(tmp_path):
    site = own_site(tmp_path, "cat" * 8, data={"label_column": "diagnosis"})
    text = reason(describe(site, OWN))
    assert "no column 'diagnosis' (`data.label_column`)" in text
    assert "ward" not in text
    assert str(tmp_path) not in text


def test_images_of_more_than_8_bits_need_a_range_that_all_sites_share(tmp_path):
    rows = [{"image": [[0, 7 * index], [4000, 9]], "label": "cat"[index % 3]} for index in range(24)]
    write_images(tmp_path / "rows.jsonl", rows)
    site = service(tmp_path, data={"source": str(tmp_path / "rows.jsonl")})
    describe(site, OWN)
    answer = prepare(site, [[0, "hamburg"]], "cat")
    assert "more than 8 bits: values from 0 to 4000" in reason(answer)
    assert "`data.value_range`" in answer.manifest["hint"]
    describe(site, OWN.replace('source = "digits"', 'source = "digits"\nvalue_range = [0, 4095]'))
    assert prepare(site, [[0, "hamburg"]], "cat").kind == "prepared"
    range_here = site._kept["deployed"][1].model.backbone.modality.preparation.value_range
    assert range_here == (0, 4095)


def test_clients_that_the_partition_does_not_have_are_refused(tmp_path):
    answer = describe(service(tmp_path, clients="6-9"), SMALL)
    assert "none of this site's clients 6, 7, 8, 9; there are 6 clients, 0 to 5" in reason(answer)


def test_rows_that_the_clients_hold_back_are_the_sites_test_rows(tmp_path):
    text = SMALL.replace('source = "digits"', 'source = "digits"\nevaluate_on = "validation"')
    site, assembly = service(tmp_path, clients=list(OURS)), simulated(text)
    clients = assembly.data.test.clients
    assert clients is not None
    ours = [int((clients == number).sum()) for number in OURS]
    answer = describe(site, text)
    assert answer.manifest["num_test_examples"] == sum(ours)
    assert [client["num_examples"] for client in answer.manifest["clients"]] == [
        len(assembly.data.partition[number]) for number in OURS
    ]
    assert prepare(site, PART).kind == "prepared"
    assert len(site._kept["deployed"][1].test) == sum(ours)


def test_what_a_site_leaves_out_stays_there_but_for_its_number(tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"label": label, "client": client} for client in ("ann", "bob") for label in (0, 1, 0, 1)]
    lines = write_images(data / "scans.jsonl", rows).read_text().splitlines()
    secret = '{"image": "Mrs Smith, born 1950'
    (data / "scans.jsonl").write_text("\n".join([*lines[:3], secret, *lines[3:], '{"label": 1, "client": "bob"}', ""]))
    source = {"source": str(data / "scans.jsonl"), "client_column": "client", "on_error": "skip"}
    site = service(tmp_path, data=source, clients=None)
    answer = describe(site, SMALL)
    assert answer.manifest["num_skipped"] == 2
    assert sum(client["num_examples"] for client in answer.manifest["clients"]) + answer.manifest[
        "num_test_examples"
    ] == len(rows)
    sent = repr(pack(answer))
    assert "num_skipped" in sent
    assert "Smith" not in sent
    assert "scans" not in sent
    (listed,) = tmp_path.rglob("skipped.csv")
    assert 'training set,3,,"it is not valid JSON: ' in listed.read_text()
    assert "training set,9,," in listed.read_text()
    assert "Smith" not in listed.read_text()
