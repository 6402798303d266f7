"""`fedelta personalize`: a run that holds clients out, and what it writes about them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.builders import tiny_backbone, tiny_data
from tests.small import SMALL, write_small
from typer.testing import CliRunner

import fedelta
from fedelta import personalization
from fedelta.catalog import SCOPES
from fedelta.choices import choices
from fedelta.cli import app
from fedelta.data.batches import FederatedData
from fedelta.errors import CheckpointError, ConfigError, DataError, InputError, RunError
from fedelta.experiment import Experiment, Result
from fedelta.federation.fine_tuning import fine_tune
from fedelta.record import files

EXITS = (
    SMALL.replace(
        '[tuning]\nname = "lora"\nr = 2\n',
        '[[tuning]]\nname = "accumulator"\nnum_heads = 2\nmlp_width = 16\nhead_width = 8\n\n'
        '[[tuning]]\nname = "adapter"\nplacement = "parallel"\nshared = false\nreduction_factor = 4\n',
    )
    + "\n[exits]\ntiers = [1, 2]\n\n[personalization]\nheld_out_clients = 2\nlrs = [0.01, 0.1]\n"
)


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    folder = tmp_path_factory.mktemp("personal")
    return Experiment.from_toml(write_small(folder, text=EXITS)).run(folder / "run")


@pytest.fixture(scope="module")
def record(result) -> dict:
    return fedelta.personalize(result.path)


def call(*arguments: object) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output, done.exception


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_round_asks_a_client_that_is_held_out_and_ids_stay(result, tmp_path):
    whole = Experiment.from_toml(
        write_small(tmp_path, text=EXITS), ["personalization.held_out_clients=0"]
    ).assembly.data
    data = result.assembly.data
    assert len(data.held_out) == 2
    assert not data.partition.keys() & data.held_out.keys()
    assert data.partition.keys() | data.held_out.keys() == whole.partition.keys() == set(range(6))
    assert all(
        torch.equal({**data.partition, **data.held_out}[client], rows) for client, rows in whole.partition.items()
    )
    asked = {client for record in rows(result.path / "rounds.jsonl") for client in record["cohort"]}
    sent = {row["client_id"] for row in rows(result.path / "ledger.jsonl") if row["round"]}
    # Three rounds of three of the other four: at seed 3 all of them have been asked.
    assert asked == sent == set(data.partition)


def test_the_files_of_the_run_name_the_held_out_clients(result):
    counts = json.loads((result.path / "partition.json").read_text())
    data = result.assembly.data
    for key, rows_of in (("clients", data.partition), ("held_out", data.held_out)):
        assert {int(client): sum(by_class) for client, by_class in counts[key].items()} == {
            client: len(rows) for client, rows in rows_of.items()
        }
    fedelta.write_report([result.path], result.path / "report.html")


def test_a_client_has_the_depth_that_it_would_have_had_in_training(result):
    # Client i has tier i modulo 2, held out or not.
    assert result.assembly.tiers is not None
    assert result.assembly.tiers.depths == {client: 1 + client % 2 for client in range(6)}
    trained = result.assembly.site.tiers
    assert trained is not None
    assert trained.depths.keys() == result.assembly.data.partition.keys()


def test_the_record_has_each_client_before_and_after_with_mean_deviation_and_worst(result, record):
    assert json.loads((result.path / "personalization.json").read_text()) == record
    assert "nothing was sent" in record["note"]
    assert list(record["scopes"]) == ["all", "adapters", "token"]
    # The token is as wide as the model.
    assert record["scopes"]["token"]["tuned_parameters"] == 32
    assert record["scopes"]["all"]["tuned_parameters"] == result.summary["tuned_parameters"]
    held_out = result.assembly.data.held_out
    for scope in record["scopes"].values():
        clients = scope["clients"]
        assert [client["client_id"] for client in clients] == sorted(held_out)
        for client in clients:
            assert client["num_train"] + client["num_eval"] == len(held_out[client["client_id"]])
            assert client["lr"] in (0.01, 0.1)
            for when in ("before", "after"):
                assert len(client[f"accuracy_by_exit_{when}"]) == 1 + client["client_id"] % 2
                assert client[f"accuracy_by_exit_{when}"][-1] == client[f"accuracy_{when}"]
        for when in ("before", "after"):
            first, second = (client[f"accuracy_{when}"] for client in clients)
            assert scope[when]["mean_accuracy"] == pytest.approx((first + second) / 2)
            # Of two values the deviation of a sample is their distance by the root of two.
            assert scope[when]["std_accuracy"] == pytest.approx(abs(first - second) / 2**0.5)
            assert scope[when]["worst_accuracy"] == min(first, second)
            worst = next(client for client in clients if client["client_id"] == scope[when]["worst_client_id"])
            assert worst[f"accuracy_{when}"] == min(first, second)
    assert record["scopes"]["all"]["before"] == record["scopes"]["token"]["before"]


def test_it_starts_from_the_params_of_the_run(result, record):
    # The server's model on the rows that a client is evaluated on, by the engine of the run itself.
    from fedelta.federation.fine_tuning import split_rows

    assembly, seed = result.assembly, result.assembly.config.seed
    for before in record["scopes"]["all"]["clients"]:
        client = before["client_id"]
        rows = assembly.data.held_out[client]
        part = split_rows(
            assembly.config.personalization, rows, assembly.data.train.targets.values[rows], client, seed
        ).evaluation
        depth = 1 + client % 2
        evaluation = assembly.engine.evaluator.evaluate(result.params, assembly.data.train, part, depth)
        assert before["accuracy_by_exit_before"] == list(evaluation.by_exit["accuracy"])
        assert before["loss_nats_before"] == pytest.approx(evaluation.measures["loss_nats"], rel=1e-5)


def test_it_changes_nothing_else_and_gives_the_same_bits_again(result, record):
    names = ("ledger.jsonl", "rounds.jsonl", "summary.json", "checkpoint/state.safetensors", "config.toml")
    before = [(result.path / name).read_bytes() for name in names]
    content = (result.path / "personalization.json").read_bytes()
    code, out, error = call("personalize", result.path, "--quiet")
    assert (code, out) == (0, ""), error
    assert [(result.path / name).read_bytes() for name in names] == before
    assert (result.path / "personalization.json").read_bytes() == content
    assert Experiment.from_run(result.path).resume(result.path).measures["accuracy"] == result.measures["accuracy"]


def test_who_waits_hears_of_every_result(result, record):
    heard = []
    fedelta.personalize(result.path, on_result=lambda tuned, total: heard.append((tuned.scope, tuned.client_id, total)))
    expected = {(scope, row["client_id"]) for scope, part in record["scopes"].items() for row in part["clients"]}
    assert len(expected) == 6
    assert sorted(heard) == sorted((*scope_and_client, 6) for scope_and_client in expected)


def test_the_command_prints_a_table_and_takes_overrides(result, tmp_path):
    run = shutil.copytree(result.path, tmp_path / "run")
    overrides = ('personalization.tune=["token"]', "personalization.lrs=[0.5]", "runtime.lanes=1")
    code, out, error = call("personalize", run, *(part for override in overrides for part in ("--set", override)))
    assert code == 0, error
    assert "token" in out
    assert "adapters" not in out
    record = json.loads((run / "personalization.json").read_text())
    assert {client["lr"] for client in record["scopes"]["token"]["clients"]} == {0.5}


def test_what_belongs_to_the_run_cannot_be_set(result):
    overrides = ["client.lr=0.5", "seed=4", "personalization.held_out_clients=3"]
    with pytest.raises(ConfigError) as caught:
        fedelta.personalize(result.path, overrides)
    assert caught.value.problems == (
        "the held-out clients are those of the run; to hold out others, run again",
        "`seed` is the run's; only `personalization.` and `runtime.` keys can be set",
        "`client` is the run's; only `personalization.` and `runtime.` keys can be set",
    )


def test_a_run_without_held_out_clients_is_refused_with_advice(tmp_path):
    result = Experiment.from_toml(write_small(tmp_path), ["strategy.num_rounds=1"]).run(tmp_path / "run")
    with pytest.raises(InputError, match="held no client out") as caught:
        fedelta.personalize(result.path, ["personalization.held_out_clients=2"])
    assert caught.value.hint == "set `personalization.held_out_clients` and run again."
    assert not (result.path / "personalization.json").exists()


def test_a_run_that_is_not_finished_is_refused(result, tmp_path):
    run = shutil.copytree(result.path, tmp_path / "run")
    (run / "summary.json").unlink()
    with pytest.raises(RunError, match="is not finished") as caught:
        fedelta.personalize(run)
    assert f"fedelta resume {run}" in str(caught.value.hint)


def test_other_data_than_those_of_the_run_are_refused(result, tmp_path):
    run = shutil.copytree(result.path, tmp_path / "run")
    config = run / "config.toml"
    config.write_text(config.read_text().replace("max_train_examples = 120", "max_train_examples = 121"))
    with pytest.raises(CheckpointError):
        fedelta.personalize(run)


def test_a_file_is_written_as_a_whole_or_not_at_all(result, record, monkeypatch):
    content = (result.path / "personalization.json").read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        fedelta.personalize(result.path, ["personalization.lrs=[0.3]"])
    assert (result.path / "personalization.json").read_bytes() == content


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (['personalization.tune=["all", "token"]'], ConfigError, "has 'token', of which tuning method 'lora' trains"),
        (["personalization.train_fraction=0.99"], DataError, r"2 problems in the clients .*\n  - client"),
        (["strategy.clients_per_round=5"], ConfigError, "holds out 2 of 6 clients, which leaves 4"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(tmp_path, overrides, error, message):
    config = write_small(tmp_path, text=SMALL + "\n[personalization]\nheld_out_clients = 2\n")
    with pytest.raises(error, match=message):
        Experiment.from_toml(config, overrides).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_of_clients_that_are_held_out_are_not_in_the_validation_set(tmp_path):
    config = write_small(tmp_path, text=SMALL + "\n[personalization]\nheld_out = [1, 4]\n")
    data = Experiment.from_toml(config, ["data.evaluate_on=validation", "data.validation_fraction=0.5"]).assembly.data
    plain = Experiment.from_toml(config).assembly.data
    assert {client: len(rows) for client, rows in data.held_out.items()} == {
        client: len(rows) for client, rows in plain.held_out.items()
    }
    trained = sum(map(len, data.partition.values()))
    assert trained + len(data.test) + sum(map(len, data.held_out.values())) == 120


def test_data_and_a_model_of_your_own_can_be_personalised(tmp_path):
    rows_of = dict(enumerate(torch.arange(24).split(8)))

    def made() -> dict:
        train = tiny_data(num_rows=24)
        data = FederatedData(train, tiny_data(num_rows=6, seed=1), ("a", "b", "c"), rows_of)
        return {"backbone": tiny_backbone(), "data": data}

    config = fedelta.Config(
        model=fedelta.ModelSource(architecture={"model_type": "vit"}),
        data=fedelta.DataSource(source="digits"),
        partition=fedelta.Iid(num_clients=3),
        tuning=fedelta.Lora(r=2),
        strategy=fedelta.FedAvg(clients_per_round=2, num_rounds=1),
        client=fedelta.ClientSettings(batch_size=4),
        personalization=fedelta.Personalization(held_out=(1,), lrs=(0.1,), tune=("all",)),
    )
    result = fedelta.Experiment(config, **made()).run(tmp_path / "run")
    assert result.assembly.data.partition.keys() == {0, 2}
    scope = fedelta.personalize(tmp_path / "run", **made())["scopes"]["all"]
    # 0.7 * 8 = 5.6; of one client there is no deviation.
    assert [(client["client_id"], client["num_train"], client["num_eval"]) for client in scope["clients"]] == [
        (1, 6, 2)
    ]
    assert scope["after"]["std_accuracy"] is None
    assert "accuracy_by_exit_after" not in scope["clients"][0]


def test_a_run_of_a_strategy_with_steps_memory_and_a_deadline_can_be_personalised(tmp_path):
    config = write_small(tmp_path, text=SMALL + "\n[personalization]\nheld_out_clients = 2\nlrs = [0.1]\n")
    overrides = ["strategy.name=scaffold", "stability.dropout_fraction=0.1", "local_rule.name=fedprox"]
    result = Experiment.from_toml(config, [*overrides, "strategy.num_rounds=1"]).run(tmp_path / "run")
    assert list(fedelta.personalize(result.path)["scopes"]) == ["all", "adapters"]


def test_clients_fine_tune_side_by_side_as_many_as_there_are_lanes_for(result, monkeypatch):
    lanes = []

    def noted(settings, held_out, scopes):
        lanes.append(held_out.engine.lanes.num)
        return fine_tune(settings, held_out, scopes)

    monkeypatch.setattr(personalization, "fine_tune", noted)
    for number in ("auto", "3"):
        fedelta.personalize(result.path, [f"runtime.lanes={number}"])
    # Two clients with two rates each; 64 samples a step are eight lanes of batch 8.
    assert lanes == [4, 3]


def test_check_and_list_show_it(tmp_path):
    config = write_small(tmp_path, text=SMALL + "\n[personalization]\nheld_out_clients = 2\n")
    code, out, error = call("check", config)
    assert code == 0, error
    assert "4 clients" in out
    assert "2 clients held out" in out
    assert choices()["personalization.tune"] == list(SCOPES)
