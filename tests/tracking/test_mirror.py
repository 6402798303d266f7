"""Trackers and the records of a run, with a tool that only remembers."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import pytest
from tests.small import stop_after, write_small
from typer.testing import CliRunner

from fedelta.cli import app
from fedelta.config import Config, load_config
from fedelta.errors import ConfigError
from fedelta.experiment import Experiment
from fedelta.tasks.base import Measure
from fedelta.tasks.classification import LOSS
from fedelta.tracking.base import TrackedRun
from fedelta.tracking.mirror import flatten, round_values
from fedelta.tracking.settings import Tracking
from fedelta.tracking.table import TOOLS, Tool, require

ON = ['tracking.tools=["tensorboard"]']


@dataclass
class Memory:
    """A tool that remembers what it was told, and fails where it is asked to."""

    fails: set[str] = field(default_factory=set)
    runs: list[TrackedRun] = field(default_factory=list)
    rounds: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    ends: list[Mapping[str, float] | None] = field(default_factory=list)

    def open(self, run: TrackedRun) -> Memory:
        self._maybe_fail("open")
        self.runs.append(run)
        self.rounds = []
        return self

    def log(self, round: int, values: Mapping[str, float]) -> None:
        self._maybe_fail("log")
        self.rounds.append((round, values))

    def finish(self, summary: Mapping[str, float]) -> None:
        self._maybe_fail("finish")
        self.ends.append(summary)

    def close(self) -> None:
        self._maybe_fail("close")
        self.ends.append(None)

    def _maybe_fail(self, what: str) -> None:
        if what in self.fails:
            raise RuntimeError(f"cannot {what}")


@pytest.fixture
def memory(monkeypatch) -> Memory:
    """In the place of TensorBoard, and installed everywhere."""
    memory = Memory()
    monkeypatch.setitem(TOOLS, "tensorboard", Tool(memory.open, {"json": "json"}))
    return memory


def test_every_round_is_logged_with_the_numbers_of_its_record(memory, tmp_path):
    result = Experiment.from_toml(write_small(tmp_path), ON).run(tmp_path / "run")
    records, timings = (
        [json.loads(line) for line in (result.path / name).read_text().splitlines()]
        for name in ("rounds.jsonl", "timings.jsonl")
    )
    assert [round for round, _ in memory.rounds] == [1, 2, 3]
    for (_, values), record, timing in zip(memory.rounds, records, timings, strict=True):
        assert values == {
            "accuracy": record["measures"]["accuracy"],
            "test_loss_nats": record["measures"]["loss_nats"],
            "train_loss_nats": record["train_loss_nats"],
            "uplink_mib": record["uplink_bytes"] / 2**20,
            "downlink_mib": record["downlink_bytes"] / 2**20,
            "cumulative_mib": record["cumulative_bytes"] / 2**20,
            "num_rejections": 0.0,
            "wall_seconds": timing["wall_seconds"],
        }
    [summary] = memory.ends
    assert summary is not None
    assert summary["summary/final_accuracy"] == result.measures["accuracy"]
    assert summary["summary/rounds"] == 3


def test_a_tool_learns_the_name_the_place_and_the_parameters_of_the_run(memory, tmp_path):
    Experiment.from_toml(write_small(tmp_path), [*ON, "tracking.project=mine", "strategy.num_rounds=1"]).run(
        tmp_path / "run"
    )
    [run] = memory.runs
    assert (run.name, run.project, run.directory) == ("run", "mine", tmp_path / "run" / "tracking")
    assert run.id == (tmp_path / "run" / "tracking" / "id").read_text()
    assert run.parameters["strategy.num_rounds"] == 1
    assert run.parameters["tuning.target_modules"] == "auto"
    assert "codec.name" in run.parameters
    assert not any(key.startswith("tracking") for key in run.parameters)


def test_a_resumed_run_is_the_same_run_with_every_round_once(memory, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(write_small(tmp_path), ON).run(tmp_path / "run", on_round=stop_after(2))
    assert [round for round, _ in memory.rounds] == [1, 2]
    assert memory.ends == [None]
    Experiment.from_run(tmp_path / "run").resume(tmp_path / "run")
    first, second = memory.runs
    assert first == second
    assert [round for round, _ in memory.rounds] == [1, 2, 3]
    assert memory.ends[1] is not None


def test_the_records_of_a_run_are_the_same_with_and_without_tracking(memory, tmp_path):
    config = write_small(tmp_path)
    one, two = (Experiment.from_toml(config, on).run(tmp_path / f"{len(on)}") for on in ([], ON))
    assert (one.path / "rounds.jsonl").read_bytes() == (two.path / "rounds.jsonl").read_bytes()
    assert not (one.path / "tracking").exists()
    assert memory.runs[0].name == "1"


def test_a_finished_run_can_be_tracked_afterwards(memory, tmp_path):
    result = Experiment.from_toml(write_small(tmp_path)).run(tmp_path / "run")
    config = result.path / "config.toml"
    config.write_text(config.read_text().replace("tools = []", 'tools = ["tensorboard"]'))
    Experiment.from_run(result.path).resume(result.path)
    assert [round for round, _ in memory.rounds] == [1, 2, 3]
    assert len(memory.ends) == 1


def test_two_runs_of_one_configuration_are_two_runs_in_a_directory_of_their_choice(memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Experiment.from_toml(write_small(tmp_path), [*ON, "tracking.directory=shared", "strategy.num_rounds=1"]).run(
            name
        )
    one, two = memory.runs
    assert one.id != two.id
    assert one.directory == two.directory == tmp_path / "shared"


@pytest.mark.parametrize("what", ["open", "log", "finish", "close"])
def test_a_tool_that_fails_costs_a_warning_and_not_the_run(memory, tmp_path, caplog, what):
    memory.fails = {what, "close"}
    with caplog.at_level(logging.WARNING, "fedelta"):
        result = Experiment.from_toml(write_small(tmp_path), [*ON, "strategy.num_rounds=1"]).run(tmp_path / "run")
    assert result.summary["rounds"] == 1
    warnings = [record.message for record in caplog.records if "tracking with" in record.message]
    if what == "close":  # a finished tracker is not closed again
        assert warnings == []
    else:
        [warning] = warnings
        assert f"tracking with tensorboard ended: RuntimeError: cannot {what}. The run continues;" in warning
        assert f"`fedelta resume {result.path}`" in warning


def test_the_other_tools_go_on_when_one_fails(memory, tmp_path, monkeypatch):
    failing = Memory(fails={"log"})
    monkeypatch.setitem(TOOLS, "wandb", Tool(failing.open, {"json": "json"}))
    both = ['tracking.tools=["wandb", "tensorboard"]', "strategy.num_rounds=1"]
    Experiment.from_toml(write_small(tmp_path), both).run(tmp_path / "run")
    assert [round for round, _ in memory.rounds] == [1]
    assert len(failing.ends) == 0


def test_tools_that_are_not_installed_are_named_before_a_run_directory_is_there(tmp_path, monkeypatch):
    for module in ("mlflow", "alembic", "sqlalchemy", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    experiment = Experiment.from_toml(write_small(tmp_path), ['tracking.tools=["wandb", "mlflow"]'])
    with pytest.raises(ConfigError) as caught:
        experiment.run(tmp_path / "run")
    assert "`tracking.tools` has 'wandb', but Python finds no `wandb`" in str(caught.value)
    assert "has 'mlflow', but Python finds no `mlflow` and no `sqlalchemy` and no `alembic`" in str(caught.value)
    assert caught.value.hint == "pip install alembic mlflow-skinny sqlalchemy wandb"
    assert not (tmp_path / "run").exists()


def test_checking_a_configuration_finds_a_tool_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = CliRunner().invoke(app, ["check", str(write_small(tmp_path)), "--set", 'tracking.tools=["wandb"]'])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.hint == "pip install wandb"


def test_nothing_is_required_when_nothing_is_tracked(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    require(Tracking())


def test_an_unknown_tool_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"`tracking\.tools\.0` is 'tensorbord', expected: 'tensorboard', 'mlflow'"):
        load_config(write_small(tmp_path), ['tracking.tools=["tensorbord"]'])


def test_the_table_has_the_names_of_the_configuration():
    [names, _] = get_args(Tracking.model_fields["tools"].annotation)
    assert tuple(TOOLS) == get_args(names)


def test_the_place_of_the_files_is_written_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Experiment.from_toml(write_small(tmp_path), ["tracking.directory=there"]).config
    assert config.tracking.directory == str(tmp_path / "there")
    assert Config.model_validate(config.model_dump()) == config


def test_a_round_without_evaluation_and_a_loss_that_is_no_number_are_left_out():
    record = {"measures": None, "train_loss_nats": float("nan"), "rejections": [{}, {}]}
    record |= {"uplink_bytes": 2**20, "downlink_bytes": 2**19, "cumulative_bytes": 2**21}
    assert round_values(record, {"wall_seconds": 1.5}, LOSS) == {
        "uplink_mib": 1.0,
        "downlink_mib": 0.5,
        "cumulative_mib": 2.0,
        "num_rejections": 2.0,
        "wall_seconds": 1.5,
    }


def test_trackers_get_the_epsilon_of_a_private_round():
    record = {"measures": None, "train_loss_nats": None, "rejections": []}
    record |= {"uplink_bytes": 0, "downlink_bytes": 0, "cumulative_bytes": 0}
    record |= {"epsilon": 2.5, "epsilon_rdp": 3.0, "clipping_norm": 0.5}
    expected = {"epsilon": 2.5, "epsilon_rdp": 3.0, "clipping_norm": 0.5}
    assert round_values(record, {}, LOSS).items() >= expected.items()


def test_trackers_learn_nothing_of_cohorts_if_clients_are_protected(memory, tmp_path):
    private = ["privacy.unit=client", "privacy.noise_multiplier=1", "strategy.num_rounds=1"]
    Experiment.from_toml(write_small(tmp_path), [*ON, *private]).run(tmp_path / "run")
    [(_, values)], [summary] = memory.rounds, memory.ends
    assert values.keys() == {"accuracy", "test_loss_nats", "epsilon", "epsilon_rdp", "clipping_norm"}
    assert summary is not None
    assert not [key for key in summary if "bytes" in key or "seconds" in key or "cost" in key]


def test_trackers_get_the_measures_of_any_task_and_the_loss_is_named_after_its_data():
    record = {"measures": {"mae": 0.5, "mse": 0.25}, "train_mse": 0.75, "rejections": []}
    record |= {"uplink_bytes": 0, "downlink_bytes": 0, "cumulative_bytes": 0}
    values = round_values(record, {"wall_seconds": 1.0}, Measure("mse", "squared error", higher_is_better=False))
    assert values == {
        "mae": 0.5,
        "test_mse": 0.25,
        "train_mse": 0.75,
        "uplink_mib": 0.0,
        "downlink_mib": 0.0,
        "cumulative_mib": 0.0,
        "num_rejections": 0.0,
        "wall_seconds": 1.0,
    }


def test_parameters_are_flat():
    assert flatten({"a": {"b": {"c": True}, "d": None}, "e": [{"f": 1}]}) == {"a.b.c": True, "e": '[{"f": 1}]'}
