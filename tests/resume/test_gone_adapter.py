"""A run that started from an adapter needs it no more: it resumes, evaluates and personalises without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.builders import assert_same_bits
from tests.small import CONVOLUTIONAL, SMALL, write_small

import fedelta
from fedelta.config import load_config
from fedelta.errors import InputError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment
from fedelta.tracking.base import TrackedRun
from fedelta.tracking.table import TOOLS, Tool

FILES = ("config.toml", "rounds.jsonl", "ledger.jsonl", "model.json", "adapter/adapter_model.safetensors")
HELD_OUT = SMALL + "\n[personalization]\nheld_out_clients = 2\nlrs = [0.1]\n"


def stop(outcome: object, ledger: object) -> None:
    raise KeyboardInterrupt


def started(folder: Path, text: str, *overrides: str) -> Experiment:
    """An experiment that starts from the adapter `folder / start`."""
    adapter = f"model.adapter={json.dumps(str(folder / 'start'))}"
    return Experiment.from_toml(write_small(folder, text=text), [adapter, *overrides])


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Text of a configuration to the adapter of a run of one round."""
    made = {}
    for text, overrides in ((SMALL, ()), (CONVOLUTIONAL, ("tuning.name=full",))):
        folder = tmp_path_factory.mktemp("first")
        first = Experiment.from_toml(write_small(folder, text=text), [*overrides, "strategy.num_rounds=1"])
        made[text] = first.run(folder / "first").path / "adapter"
    return made


@pytest.fixture
def small_adapter(adapters: dict[str, Path], tmp_path: Path) -> Path:
    """The adapter of a run of SMALL, where `started` looks for it."""
    return shutil.copytree(adapters[SMALL], tmp_path / "start")


@pytest.mark.parametrize(
    ("text", "overrides", "then"),
    [
        # The configuration says rank 8, the adapter 2.
        (SMALL, (), ("tuning.r=",)),
        # Norms that never travel: a client that is asked for the first time begins with those of the adapter.
        (CONVOLUTIONAL, ("tuning.name=full",), ("model.batch_norm=local",)),
    ],
    ids=["lora", "local norms"],
)
def test_it_resumes_to_the_same_bits(
    text: str, overrides: tuple[str, ...], then: tuple[str, ...], adapters: dict[str, Path], tmp_path: Path
):
    shutil.copytree(adapters[text], tmp_path / "start")
    whole = started(tmp_path, text, *overrides, *then).run(tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        started(tmp_path, text, *overrides, *then).run(tmp_path / "stopped", on_round=stop)
    shutil.rmtree(tmp_path / "start")
    again = Experiment.from_run(tmp_path / "stopped").resume(tmp_path / "stopped")
    assert_same_bits(again.params, whole.params)
    for name in FILES:
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes(), name


@pytest.mark.usefixtures("small_adapter")
def test_it_evaluates_and_says_which_tuning_method_it_had(tmp_path: Path):
    result = started(tmp_path, SMALL, "tuning.r=").run(tmp_path / "run")
    shutil.rmtree(tmp_path / "start")
    assert evaluate_adapter(result.path).measures == result.measures
    # 8 is the default.
    assert load_config(result.path / "config.toml", ["model.adapter="]).tuning.r == 2


@pytest.mark.usefixtures("small_adapter")
def test_a_tracker_gets_the_same_parameters_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs: list[TrackedRun] = []

    def opened(run: TrackedRun) -> None:
        runs.append(run)
        raise RuntimeError("no need of the rounds")

    monkeypatch.setitem(TOOLS, "tensorboard", Tool(opened, {"json": "json"}))
    tracked = ("tuning.r=", 'tracking.tools=["tensorboard"]')
    with pytest.raises(KeyboardInterrupt):
        started(tmp_path, SMALL, *tracked).run(tmp_path / "run", on_round=stop)
    shutil.rmtree(tmp_path / "start")
    Experiment.from_run(tmp_path / "run").resume(tmp_path / "run")
    first, second = runs
    assert first.parameters == second.parameters
    assert first.parameters["tuning.r"] == 2
    assert first.parameters["model.adapter"] == str(tmp_path / "start")


@pytest.mark.usefixtures("small_adapter")
def test_it_personalises(tmp_path: Path):
    result = started(tmp_path, HELD_OUT).run(tmp_path / "whole")
    shutil.rmtree(tmp_path / "start")
    assert list(fedelta.personalize(result.path)["scopes"]) == ["all", "adapters"]


@pytest.mark.usefixtures("small_adapter")
def test_it_does_not_start_anew_without_it(tmp_path: Path):
    result = started(tmp_path, SMALL).run(tmp_path / "whole")
    expected = r"started from adapter .*start', without which it can only be resumed"
    with pytest.raises(InputError, match=expected) as caught:
        Experiment.from_run(result.path).run(tmp_path / "other")
    assert "config.toml" in str(caught.value.hint)
    assert not (tmp_path / "other").exists()
    anew = Experiment.from_toml(result.path / "config.toml").run(tmp_path / "other")
    assert_same_bits(anew.params, result.params)


@pytest.mark.usefixtures("small_adapter")
def test_the_configuration_of_an_experiment_is_the_one_that_was_read(tmp_path: Path):
    planned = ("client.local_epochs=", "strategy.name=fedlama-auto", "strategy.tau=2", "strategy.num_rounds=4")
    experiment = started(tmp_path, SMALL, "tuning.r=", "byte_budget_mib=0.2", *planned)
    read = experiment.config.model_copy()
    assembly = experiment.assembly
    assert assembly.config is experiment.config
    assert experiment.config == read
    # What is made of it: the rank of the adapter, the steps of the strategy, the share that the bytes allow.
    assert (read.tuning.r, assembly.model.tuning.r) == (8, 2)
    assert (read.client.local_steps, assembly.engine.client.local_steps) == (None, 2)
    assert read.strategy.share is None
    assert assembly.strategy.share == assembly.federation.strategy.share == 1.0
