"""The key of a run's secret noise: where it is, who may read it, and what a run does without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.builders import assert_same_bits
from tests.small import SMALL, stop_after, write_small

from fedelta.errors import CheckpointError
from fedelta.experiment import Experiment
from fedelta.record.keys import KEY

SECRET = [
    "privacy.unit=client", "privacy.noise_multiplier=1.0", "privacy.randomness=secure", "client.local_epochs=",
    "client.local_steps=1", "strategy.num_rounds=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A private run that has ended after round 1 of 2."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(write_small(folder, text=SMALL), SECRET).run(folder / "run", on_round=stop_after(1))
    return folder / "run"


def resumed(run: Path) -> object:
    return Experiment.from_run(run).resume(run)


def test_the_key_of_a_run_is_for_its_owner_only_and_in_no_other_file_of_it(stopped):
    key = (stopped / KEY).read_bytes()
    assert (len(key), (stopped / KEY).stat().st_mode & 0o777) == (32, 0o600)
    for path in stopped.rglob("*"):
        if path.is_file() and path != stopped / KEY:
            assert key not in path.read_bytes()
            assert key.hex().encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda path: path.chmod(0o640), "others than its owner may read"),
        (lambda path: path.write_bytes(bytes(32)), "is not that with which it began"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
    ],
    ids=["open", "another", "lost"],
)
def test_a_run_does_not_go_on_with_a_key_that_is_open_another_or_lost(stopped, harm, problem):
    path = stopped / KEY
    key = path.read_bytes()
    try:
        harm(path)
        with pytest.raises(CheckpointError, match=problem):
            resumed(stopped)
    finally:
        path.write_bytes(key)
        path.chmod(0o600)


def test_a_resumed_run_has_the_noise_and_the_cohorts_of_one_that_was_not_stopped(stopped, tmp_path):
    whole = Experiment.from_toml(write_small(tmp_path, text=SMALL), SECRET)
    whole._key = (stopped / KEY).read_bytes()
    undisturbed = whole.run(tmp_path / "run")
    again = Experiment.from_run(stopped).resume(stopped)
    assert_same_bits(again.params, undisturbed.params)
    assert (stopped / "rounds.jsonl").read_bytes() == (undisturbed.path / "rounds.jsonl").read_bytes()


def test_a_run_with_seeded_noise_has_no_key(tmp_path):
    settings = [*SECRET, "privacy.randomness=auto", "strategy.num_rounds=1"]
    run = Experiment.from_toml(write_small(tmp_path, text=SMALL), settings).run(tmp_path / "run")
    assert not (run.path / KEY).exists()
