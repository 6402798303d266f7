"""Section `[runtime]`: what it refuses, and what it finds for "auto"."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from tests.small import write_small

from fedelta.choices import choices
from fedelta.config import load_config
from fedelta.errors import ConfigError, InputError
from fedelta.experiment import Experiment
from fedelta.record.origin import settings_of
from fedelta.runtimes import settings
from fedelta.runtimes.settings import RuntimeSettings


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settings, "available_cores", lambda: 4)


@pytest.mark.parametrize("name", ["auto", "processes"])
def test_as_many_workers_as_cores_are_fine(name: str, tmp_path):
    config = load_config(write_small(tmp_path), [f"runtime.name={name}", "runtime.workers=4"])
    assert config.runtime.workers == 4


def test_more_workers_than_cores_are_refused(tmp_path):
    expected = "`runtime.workers` is 5, but this process may use 4 cores; expected that many or fewer, or 'auto'"
    with pytest.raises(ConfigError, match=expected):
        load_config(write_small(tmp_path), ["runtime.name=processes", "runtime.workers=5"])


@pytest.mark.parametrize("name", ["simulation", "flower"])
def test_workers_are_refused_where_none_would_run(name: str, tmp_path):
    with pytest.raises(ConfigError, match=f"`runtime.workers` is 2, but runtime '{name}' has no workers; leave it out"):
        load_config(write_small(tmp_path), [f"runtime.name={name}", "runtime.workers=2"])


def test_an_experiment_for_sites_is_not_run_here(tmp_path):
    experiment = Experiment.from_toml(write_small(tmp_path), ["runtime.name=flower"])
    with pytest.raises(InputError, match=r"(?s)runs on sites.*hint: start it with `fedelta deploy`"):
        experiment.run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_that_lists_names_knows_the_runtimes():
    assert choices()["runtime.name"] == ["auto", "simulation", "processes", "flower"]


def test_a_run_may_be_resumed_with_other_workers(tmp_path):
    assert not {"runtime.name", "runtime.workers"} & settings_of(load_config(write_small(tmp_path)).to_table()).keys()


@pytest.mark.parametrize(
    ("lanes", "batch_size", "places", "expected"),
    [
        ("auto", 8, 1, 8),  # one core: 64 samples a step
        ("auto", 20, 1, 3),
        ("auto", 200, 1, 1),
        ("auto", 1, 1, 16),  # no more lanes than clients
        ("auto", 8, 2, 8),  # two cores: 16 clients in two packs
        ("auto", 4, 2, 8),  # a pack for each core goes before 64 samples a step
        ("auto", 8, 16, 1),  # a pack for each core, however small
        ("auto", 32, 2, 2),  # no more than 64 samples
        (5, 200, 2, 5),
        (50, 8, 2, 16),
    ],
)
def test_lanes_fill_a_step_and_leave_packs_for_all_cores(lanes, batch_size: int, places: int, expected: int):
    chosen = RuntimeSettings(device="cpu", lanes=lanes)
    assert chosen.num_lanes(clients_per_round=16, batch_size=batch_size, places=places) == expected


def test_a_gpu_fills_larger_steps():
    assert RuntimeSettings(device="cuda").num_lanes(clients_per_round=100, batch_size=32, places=1) == 32


@pytest.mark.parametrize("lanes", [0, -2, 2.5, "many"])
def test_a_number_of_lanes_that_is_none_is_refused(lanes, tmp_path):
    expected = f"`runtime.lanes` is {lanes!r}, expected: 'auto' or "
    with pytest.raises(ConfigError, match=expected):
        load_config(write_small(tmp_path), [f"runtime.lanes={lanes}"])
    with pytest.raises(ValidationError, match="lanes"):
        RuntimeSettings(lanes=lanes)


@pytest.mark.parametrize(
    ("device", "advice"),
    [
        ("cuda:3", "to use this GPU, start with CUDA_VISIBLE_DEVICES=3 in the environment and 'cuda' here"),
        ("mps", "'cuda' is a GPU of NVIDIA or AMD, and nothing else is supported"),
        ("tpu", "'cuda' is a GPU of NVIDIA or AMD, and nothing else is supported"),
        ("gpu", "'cuda' is a GPU of NVIDIA or AMD, and nothing else is supported"),
    ],
)
def test_an_unknown_device_is_refused_with_what_to_do(device: str, advice: str, tmp_path):
    expected = f"`runtime.device`: '{device}' is unknown, expected 'auto', 'cpu' or 'cuda'; {advice}"
    with pytest.raises(ConfigError, match=expected):
        load_config(write_small(tmp_path), [f"runtime.device={device}"])
    with pytest.raises(ValidationError, match="device"):
        RuntimeSettings(device=device)


def test_a_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settings, "_num_gpus", lambda: 0)
    with pytest.raises(
        ConfigError, match=r"`runtime.device` is 'cuda', but torch finds no GPU; expected 'cpu' or 'auto'"
    ):
        load_config(write_small(tmp_path), ["runtime.device=cuda"])
