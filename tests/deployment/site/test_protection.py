"""A site in a private run: its own noise, its own count, and what it does not take part in."""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.deployment.talk import ask, describe, entry, prepare, service, train, trainee
from tests.small import CONVOLUTIONAL, SMALL

from fedelta import __version__
from fedelta.assembly.deployed import Deployed
from fedelta.assembly.run import Assembly, assemble
from fedelta.codecs.wire import decode, encode
from fedelta.config import parse_config
from fedelta.deployment.site import service as service_module
from fedelta.deployment.site.account import ACCOUNT, Account, Limit
from fedelta.deployment.site.protection import KEY
from fedelta.deployment.site.service import Service
from fedelta.errors import ModelError
from fedelta.params import Params, norm, select
from fedelta.privacy.accounting import epsilons
from fedelta.privacy.local import SitePrivacy
from fedelta.privacy.randomness import Seeded
from fedelta.privacy.state import Release
from fedelta.runtimes.remote.messages import PROTOCOL, Message
from fedelta.strategies.base import RoundPlan

OURS = (0, 2, 3)
PART = [[number, number] for number in OURS]
LOCAL = f"{SMALL}\n[privacy]\nunit = 'local'\nnoise_multiplier = 4.0\n"
EXAMPLE = LOCAL.replace("'local'", "'example'")
SEEDED = LOCAL + "randomness = 'seeded'\n"
DELTA = 1e-5


@pytest.fixture(scope="module")
def small() -> Assembly:
    """The same clients in one process, trained together as those of a message to a site are."""
    assembly = assemble(parse_config(tomllib.loads(f"{SMALL}\n[runtime]\nlanes = {len(OURS)}\n")))
    return replace(assembly, site=replace(assembly.site, places=1))


def started(folder: Path, recipe: str = LOCAL, noise: object = 4.0, **insistence: object) -> Service:
    """A service that has been told its part of a run."""
    folder.mkdir(exist_ok=True)
    site = service(folder, clients=list(OURS), **({"privacy": insistence} if insistence else {}))
    assert describe(site, recipe).kind == "described"
    assert prepare(site, PART, noise_multiplier=noise).kind == "prepared"
    return site


def download(assembly: Assembly, scale: float = 1.0) -> bytes:
    params = {name: scale * tensor for name, tensor in select(assembly.params, assembly.spec.shared).items()}
    return encode(params, assembly.federation.wire, assembly.config.codec.down)[0]


def trained(
    site: Service, small: Assembly, round: int = 1, scale: float = 1.0, ours: tuple[int, ...] = OURS
) -> Message:
    answer = train(site, round, [trainee(number) for number in ours], small.spec.shared, [download(small, scale)])
    assert answer.kind == "trained", answer.manifest
    return answer


def update(answer: Message, small: Assembly, number: int) -> Params:
    payload = entry(answer, number)["payload"]
    assert payload is not None
    return decode(payload, small.federation.wire, small.config.codec.up)[0]


def spent(site: Service) -> Mapping[str, float]:
    return Account(Path(site.settings.state), Limit(DELTA)).spent()


def test_uploads_with_seeded_noise_are_those_of_a_simulation(tmp_path, small):
    site = started(tmp_path, SEEDED)
    settings = parse_config(tomllib.loads(SEEDED)).privacy
    simulated = replace(small.site, privacy=SitePrivacy(settings, 4.0, Seeded(small.config.seed)))
    plan = RoundPlan(1, dict.fromkeys(OURS, ()), dict.fromkeys(OURS, small.spec.shared), 6)
    expected = {reply.client_id: reply for reply in simulated.run(plan, dict.fromkeys(OURS, download(small)))}
    answer = trained(site, small)
    for number in OURS:
        assert entry(answer, number)["payload"] == expected[number].payload
        assert entry(answer, number)["train_loss"] is None


def test_uploads_have_noise_of_the_sites_own_which_no_other_site_and_no_seed_has(tmp_path, small):
    first, second, seeded = (
        update(trained(started(tmp_path / name, recipe), small), small, 2)
        for name, recipe in (("a", LOCAL), ("b", LOCAL), ("c", SEEDED))
    )
    size = sum(tensor.numel() for tensor in first.values())
    for one, other in ((first, second), (first, seeded)):
        # Two independent noises of deviation z C = 4 are 4 sqrt(2 size) apart.
        distance = norm({name: one[name] - other[name] for name in one})
        assert distance == pytest.approx(4 * (2 * size) ** 0.5, rel=0.1)


def test_the_same_message_has_the_same_answer_also_after_a_restart_and_is_counted_once(tmp_path, small):
    site = started(tmp_path)
    first = trained(site, small)
    again = trained(Service(site.settings), small)
    assert [entry(again, number) for number in OURS] == [entry(first, number) for number in OURS]
    # z = 4 counts as a Gaussian mechanism with 2, because two deltas differ by 2 C.
    assert spent(site) == pytest.approx(dict.fromkeys("023", epsilons({Release(2.0): 1}, DELTA).pld))


def test_a_message_that_comes_again_after_data_have_changed_in_place_is_not_answered_otherwise(
    tmp_path, small, monkeypatch, caplog
):
    site = started(tmp_path)
    trained(site, small)
    deploy = service_module.deploy

    def changed(*arguments: object) -> Deployed:
        deployed = deploy(*arguments)
        return replace(deployed, site=replace(deployed.site, seed=99))  # other batches, and so another delta

    monkeypatch.setattr(service_module, "deploy", changed)
    again = trained(Service(site.settings), small)
    for number in OURS:
        assert entry(again, number)["blob"] is None
        assert "would answer otherwise now" in entry(again, number)["fault"]["reason"]
    assert "client 2: its answer is another one than before, and is not sent" in caplog.text
    assert spent(site)["2"] == pytest.approx(epsilons({Release(2.0): 1}, DELTA).pld)
    later = trained(Service(site.settings), small, round=2)
    assert all(entry(later, number)["fault"] is None for number in OURS)


def test_a_server_that_asks_for_a_round_with_another_model_gets_other_noise_which_is_counted(tmp_path, small):
    site = started(tmp_path)
    first, other = (update(trained(site, small, scale=scale), small, 2) for scale in (1.0, 1.001))
    size = sum(tensor.numel() for tensor in first.values())
    assert norm({name: first[name] - other[name] for name in first}) > 4 * size**0.5
    assert spent(site)["2"] == pytest.approx(epsilons({Release(2.0): 2}, DELTA).pld)


def test_the_runs_of_a_site_have_different_noise(tmp_path, small):
    site = started(tmp_path)
    first = update(trained(site, small), small, 2)
    manifest = {"run": "run 2", "class_names": list("0123456789"), "clients": PART, "num_clients": 6}
    recipe = {"run": "run 2", "protocol": PROTOCOL, "version": __version__, "config": LOCAL}
    assert ask(site, "describe", recipe).kind == "described"
    assert ask(site, "prepare", manifest | {"noise_multiplier": 4.0}).kind == "prepared"
    request = {"run": "run 2", "round": 1, "num_clients": 6, "uploads": [list(small.spec.shared)]}
    answer = ask(site, "train", request | {"clients": [trainee(number) for number in OURS]}, [download(small)])
    size = sum(tensor.numel() for tensor in first.values())
    second = update(answer, small, 2)
    assert norm({name: first[name] - second[name] for name in first}) > 4 * size**0.5


def test_steps_on_examples_are_counted_with_the_rate_and_the_number_of_the_clients_own(tmp_path, small):
    site = started(tmp_path, EXAMPLE)
    trained(site, small)
    expected = {}
    for number in OURS:
        size = len(small.site.partition[number])
        releases = {Release(4.0, min(1.0, 8 / size)): -(-size // 8)}  # batches of 8, one epoch
        expected[str(number)] = epsilons(releases, DELTA).pld
    assert spent(site) == pytest.approx(expected)


def test_data_of_another_size_than_the_noise_was_calculated_for_are_refused(tmp_path, small, monkeypatch):
    site = started(tmp_path, EXAMPLE)
    deploy = service_module.deploy

    def shrunk(*arguments: object) -> Deployed:
        deployed = deploy(*arguments)
        fewer = {number: rows[1:] for number, rows in deployed.site.partition.items()}
        return replace(deployed, site=replace(deployed.site, partition=fewer))

    monkeypatch.setattr(service_module, "deploy", shrunk)
    again, names = Service(site.settings), small.spec.shared
    size = len(small.site.partition[0])
    answer = train(again, 1, [trainee(number) for number in OURS], names, [download(small)])
    assert f"client 0 has {size - 1} examples, but had {size} when the run began" in answer.manifest["reason"]
    assert not spent(site)


def test_an_error_in_training_tells_the_server_nothing_about_rows(tmp_path, small, monkeypatch, caplog):
    site = started(tmp_path, EXAMPLE)

    def fail(*_: object) -> Message:
        raise ModelError("target 17 of row 3 is out of bounds")

    monkeypatch.setattr(service_module, "trained", fail)
    answer = train(site, 1, [trainee(number) for number in OURS], small.spec.shared, [download(small)])
    assert (answer.kind, answer.manifest["reason"]) == ("refused", "training failed at this site.")
    assert "target 17 of row 3" in caplog.text


def test_a_client_whose_limit_would_be_exceeded_does_not_train_and_the_server_learns_no_number(tmp_path, small):
    # A Gaussian mechanism with 2 has epsilon 1.98 at delta 1e-5, twice 2.94: clients 0 and 2 are asked twice.
    site = started(tmp_path, unit="local", max_epsilon=2.5)
    trained(site, small, ours=(0, 2))
    before = spent(site)
    answer = trained(site, small, round=2)
    reasons = {number: (entry(answer, number)["fault"] or {}).get("reason") for number in OURS}
    assert reasons[3] is None
    for number in (0, 2):
        assert reasons[number] == "the site releases no more about this client: its own limit would be exceeded"
        assert entry(answer, number)["payload"] is None
    assert {number: spent(site)[number] for number in "02"} == before
    assert not any(char.isdigit() for char in str(reasons[0]))


def test_what_is_counted_survives_a_kill_before_the_answer_and_the_answer_that_comes_later_is_not_counted_again(
    tmp_path, small, monkeypatch
):
    site = started(tmp_path)

    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("fedelta.federation.client.Site.run", killed)
        with pytest.raises(KilledError):
            trained(site, small)
    once = spent(site)
    assert once["2"] == pytest.approx(epsilons({Release(2.0): 1}, DELTA).pld)
    trained(Service(site.settings), small)
    assert spent(site) == once


@pytest.mark.parametrize(
    ("insists", "recipe", "problem"),
    [
        ("example", SMALL, "`privacy.unit` = 'none', this site takes part only with 'example' or 'local'"),
        ("local", EXAMPLE, "`privacy.unit` = 'example', this site takes part only with 'local'"),
        ("client", EXAMPLE, "`privacy.unit` = 'example', this site takes part only with 'client' or 'local'"),
        ("local", SEEDED, "`privacy.randomness` = 'seeded': whoever has the recipe can take the noise out again"),
        (
            "example",
            f"{SMALL}\n[privacy]\nunit = 'example'\nmechanism = 'fedpeft-code'\ntarget_epsilon = 5.0\n",
            "`privacy.mechanism` = 'fedpeft-code', which guarantees nothing",
        ),
    ],
)
def test_a_site_that_insists_refuses_recipes_that_protect_less(tmp_path, insists, recipe, problem):
    answer = describe(service(tmp_path, clients=list(OURS), privacy={"unit": insists}), recipe)
    assert answer.kind == "refused"
    assert problem in answer.manifest["reason"]
    assert "\n" not in answer.manifest["reason"]


@pytest.mark.parametrize(("insists", "recipe"), [("example", LOCAL), ("client", LOCAL), ("example", EXAMPLE)])
def test_a_site_takes_part_in_what_protects_as_much_or_more(tmp_path, insists, recipe):
    assert describe(service(tmp_path, clients=list(OURS), privacy={"unit": insists}), recipe).kind == "described"


@pytest.mark.parametrize("noise", [None, 3.0, 0.0, -1.0, "4.0"])
def test_a_server_whose_noise_is_not_that_of_its_recipe_is_refused(tmp_path, noise):
    site = service(tmp_path, clients=list(OURS))
    describe(site, LOCAL)
    answer = prepare(site, PART, noise_multiplier=noise)
    assert answer.kind == "refused"
    assert "noise" in answer.manifest["reason"]


def test_a_site_that_insists_measures_nothing_unless_it_is_told_to(tmp_path, small):
    request = {"round": 1, "clients": []}
    params = [encode(select(small.params, small.spec.shared), small.federation.wire, small.config.codec.down)[0]]
    answer = ask(started(tmp_path, unit="local"), "evaluate", request, params)
    assert answer.kind == "refused"
    assert "measures no models on its data" in answer.manifest["reason"]
    told = ask(started(tmp_path / "told", unit="local", allow_measures=True), "evaluate", request, params)
    assert "measures no models" not in str(told.manifest)


def test_running_statistics_do_not_travel_in_a_private_run(tmp_path):
    recipe = f"{CONVOLUTIONAL}\n[privacy]\nunit = 'local'\nnoise_multiplier = 4.0\n"
    site = service(tmp_path, clients=list(OURS))
    assert describe(site, recipe).kind == "described"
    answer = prepare(site, PART, noise_multiplier=4.0)
    assert answer.kind == "refused"
    assert "running statistics of batch norms would travel" in answer.manifest["reason"]


def test_the_key_is_in_a_file_of_the_owners_alone_and_in_nothing_that_leaves_or_is_logged(tmp_path, small, caplog):
    caplog.set_level(logging.DEBUG)
    site = started(tmp_path)
    answer = trained(site, small)
    path = Path(site.settings.state) / KEY
    key = path.read_bytes()
    assert (len(key), path.stat().st_mode & 0o777) == (32, 0o600)
    for other in Path(site.settings.state).rglob("*"):
        assert other == path or not other.is_file() or key not in other.read_bytes()
    assert key not in b"".join(map(bytes, answer.blobs))
    assert key.hex() not in caplog.text + json.dumps(answer.manifest)


def test_a_site_that_has_lost_its_key_takes_a_new_one_says_so_and_counts_again(tmp_path, small, caplog):
    site = started(tmp_path)
    first = update(trained(site, small), small, 2)
    (Path(site.settings.state) / KEY).unlink()
    second = update(trained(Service(site.settings), small), small, 2)
    assert "the site's key for noise is lost" in caplog.text
    assert not torch.equal(first["classifier.bias"], second["classifier.bias"])
    assert spent(site)["2"] == pytest.approx(epsilons({Release(2.0): 2}, DELTA).pld)


def test_a_site_with_a_limit_that_has_lost_its_account_releases_nothing_more(tmp_path, small):
    site = started(tmp_path, unit="local", max_epsilon=9.0)
    trained(site, small)
    (Path(site.settings.state) / ACCOUNT).unlink()
    answer = train(Service(site.settings), 2, [trainee(2)], small.spec.shared, [download(small)])
    assert answer.kind == "refused"
    assert "account of what it has released is lost" in answer.manifest["reason"]


@pytest.mark.parametrize(("harm", "problem"), [("open", "others than its owner may read"), ("short", "has 5 bytes")])
def test_a_key_that_protects_nothing_is_refused(tmp_path, small, harm, problem):
    site = started(tmp_path)
    path = Path(site.settings.state) / KEY
    if harm == "open":
        path.chmod(0o644)
    else:
        path.write_bytes(b"short")
    answer = train(site, 1, [trainee(2)], small.spec.shared, [download(small)])
    assert answer.kind == "refused"
    assert problem in answer.manifest["reason"]
    assert str(tmp_path) not in json.dumps(answer.manifest)
