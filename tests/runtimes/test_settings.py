"""Section `[runtime]`: what it refuses, and what it finds for "auto"."""

from __future__ import annotations

import pytest
from tests.small import write_small

from fedelta.choices import choices
from fedelta.config import load_config
from fedelta.errors import ConfigError, InputError
from fedelta.experiment import Experiment
from fedelta.record.origin import settings_of
from fedelta.runtimes import settings


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
