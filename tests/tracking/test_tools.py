"""The tools themselves, where they are installed: what was logged is read back from their files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from fedelta.tracking.base import TrackedRun, Tracker
from fedelta.tracking.mlflow import experiment_id
from fedelta.tracking.table import TOOLS

# mlflow 3.17 uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

Values = dict[str, list[tuple[int, float]]]

REASON = "an extra, `pip install .[tracking]`, that this environment does without"


def read_tensorboard(run: TrackedRun) -> Values:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.directory / "tensorboard" / f"{run.name}-{run.id}"))
    events.Reload()
    return {name: [(item.step, item.value) for item in events.Scalars(name)] for name in events.Tags()["scalars"]}


def read_mlflow(run: TrackedRun) -> Values:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run.directory / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(run.project)
    [result] = client.search_runs([experiment.experiment_id], "tags.`fedelta.id` = '" + run.id + "'")
    return {
        key: [(item.step, item.value) for item in client.get_metric_history(result.info.run_id, key)]
        for key in result.data.metrics
    }


def read_wandb(run: TrackedRun) -> Values:
    """From the log file: a header of 7 bytes, then blocks of 32 KiB with LevelDB records that hold protobufs."""
    from wandb.proto.wandb_internal_pb2 import Record

    [directory] = (run.directory / "wandb").glob(f"offline-run-*-{run.id}")
    content, place, values = (directory / f"run-{run.id}.wandb").read_bytes(), 7, {}
    while place + 7 <= len(content):
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        assert kind in (0, 1), "the tests write less than a block"
        record = Record.FromString(content[place + 7 : place + 7 + length])
        place += 7 + length
        step = record.history.step.num
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            if not name.startswith("_"):
                values.setdefault(name, []).append((step, float(item.value_json)))
        for item in record.summary.update:
            name = item.key or "/".join(item.nested_key)
            if name.startswith("summary/"):
                values[name] = [(0, float(item.value_json))]
    return values


READERS: dict[str, Callable[[TrackedRun], Values]] = {
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One for all tests, each with runs of its own: MLflow takes seconds to make its tables."""
    return tmp_path_factory.mktemp("tools")


@pytest.fixture(params=list(TOOLS))
def tool(request: pytest.FixtureRequest) -> str:
    for module in TOOLS[request.param].modules:
        pytest.importorskip(module, reason=REASON)
    return request.param


def run_in(folder: Path, run_id: str) -> TrackedRun:
    parameters = {"seed": 7, "tuning.rank_pattern.^layers.1": 4, "tuning.use_rslora": False, "codec.name": "float16"}
    return TrackedRun("small", run_id, "digits", folder, parameters)


def log(tracker: Tracker, rounds: range) -> None:
    for round in rounds:
        tracker.log(round, {"accuracy": round / 8, "wall_seconds": 2.0})


def test_rounds_and_summary_are_in_the_files(tool: str, folder: Path):
    run = run_in(folder, "files")
    tracker = TOOLS[tool].open(run)
    log(tracker, range(1, 4))
    tracker.finish({"summary/final_accuracy": 0.375})
    values = READERS[tool](run)
    assert values["accuracy"] == [(1, 0.125), (2, 0.25), (3, 0.375)]
    assert values["wall_seconds"] == [(1, 2.0), (2, 2.0), (3, 2.0)]
    assert [value for _, value in values["summary/final_accuracy"]] == [0.375]


def test_a_run_that_is_opened_again_has_every_round_once(tool: str, folder: Path):
    run = run_in(folder, "again")
    first = TOOLS[tool].open(run)
    log(first, range(1, 3))
    first.close()
    for _ in range(2):  # the second time it is finished already
        again = TOOLS[tool].open(run)
        log(again, range(1, 4))
        again.finish({"summary/final_accuracy": 0.375})
    values = READERS[tool](run)
    assert values["accuracy"] == [(1, 0.125), (2, 0.25), (3, 0.375)]
    assert [value for _, value in values["summary/final_accuracy"]] == [0.375]


def test_runs_share_a_directory(tool: str, folder: Path):
    runs = [run_in(folder, run_id) for run_id in ("one", "two")]
    for number, run in enumerate(runs, start=1):
        tracker = TOOLS[tool].open(run)
        log(tracker, range(1, 1 + number))
        tracker.finish({})
    assert [len(READERS[tool](run)["accuracy"]) for run in runs] == [1, 2]


def test_a_tool_is_not_imported_before_it_is_opened():
    loaded = "import sys, fedelta.tracking.table; print(*{'tensorboard', 'mlflow', 'wandb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_parameters_of_mlflow_have_keys_that_it_takes(folder: Path):
    mlflow: ModuleType = pytest.importorskip("mlflow", reason=REASON)
    run = run_in(folder, "parameters")
    opened = TOOLS["mlflow"].open(run)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    assert client.get_run(opened.run_id).data.params == {
        "seed": "7",
        "tuning.rank_pattern._layers.1": "4",
        "tuning.use_rslora": "False",
        "codec.name": "float16",
    }


@dataclass
class Store:
    """As much of MLflow's client as looks for experiments; another process makes them in between."""

    ids: dict[str, str] = field(default_factory=dict)
    other_is_faster: bool = True

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id=self.ids[name]) if name in self.ids else None

    def create_experiment(self, name: str, *, artifact_location: str) -> str:
        if self.other_is_faster:
            self.ids[name] = "of the other"
        raise RuntimeError("cannot make it")


def test_an_experiment_that_another_process_makes_at_the_same_time_is_used(tmp_path):
    assert experiment_id(Store(), "digits", tmp_path) == "of the other"
    with pytest.raises(RuntimeError, match="cannot make it"):
        experiment_id(Store(other_is_faster=False), "digits", tmp_path)


def test_an_experiment_of_mlflow_that_is_there_already_is_found_by_who_did_not_see_it(tmp_path, monkeypatch):
    mlflow: ModuleType = pytest.importorskip("mlflow", reason=REASON)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    made = experiment_id(client, "digits", tmp_path)
    look, looks = client.get_experiment_by_name, []

    def late(name: str) -> object:
        looks.append(name)
        return None if len(looks) == 1 else look(name)

    monkeypatch.setattr(client, "get_experiment_by_name", late)
    assert (experiment_id(client, "digits", tmp_path), len(looks)) == (made, 2)


def test_a_finished_run_of_tensorboard_is_in_its_table_of_runs(folder: Path):
    pytest.importorskip("tensorboard", reason=REASON)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = TOOLS["tensorboard"].open(run_in(folder, "table"))
    log(tracker, range(1, 2))
    tracker.finish({"summary/final_accuracy": 0.375})
    events = EventAccumulator(str(folder / "tensorboard" / "small-table"))
    events.Reload()
    assert events.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name == "hparams"
    [text] = events.Tensors("parameters/text_summary")
    assert "| codec.name | float16 |" in text.tensor_proto.string_val[0].decode()
