"""A run that is killed at any moment ends, after `resume`, with the bits of an undisturbed one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.small import write_small

from fedelta.config import load_config
from fedelta.errors import CheckpointError, RunError
from fedelta.experiment import Experiment
from fedelta.record.rundir import RunDirectory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended; for tests that only read it."""
    folder = tmp_path_factory.mktemp("finished")
    return Experiment.from_toml(write_small(folder)).run(folder / "run").path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that ended, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def files_in(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def kill_and_resume(folder: Path, num_points: int) -> list[dict[str, object]]:
    command = [
        sys.executable,
        "-m",
        "tests.resume.kill_and_resume",
        str(write_small(folder)),
        str(folder),
        str(num_points),
    ]
    root = Path(__file__).parents[2]
    finished = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


def check(records: list[dict[str, object]]) -> None:
    assert all(record["killed"] for record in records), records
    assert all(record["resumed"] and not record["differences"] for record in records), records
    # The points are worth something only if they hit the run before, between and after its rounds.
    assert {record["rounds_written"] for record in records} >= {0, 1, 3}, records


def test_a_run_killed_at_several_points_resumes_to_the_same_bits(tmp_path):
    check(kill_and_resume(tmp_path, num_points=5))


@pytest.mark.slow
def test_a_run_killed_at_any_point_resumes_to_the_same_bits(tmp_path):
    check(kill_and_resume(tmp_path, num_points=70))


def test_resuming_a_finished_run_changes_no_record(run: Path):
    before = files_in(run)
    Experiment.from_run(run).resume(run)
    assert files_in(run) == before


def test_a_truncated_checkpoint_is_refused(run: Path):
    checkpoint = run / "checkpoint" / "state.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-7])
    with pytest.raises(CheckpointError):
        Experiment.from_run(run).resume(run)


def test_a_checkpoint_of_another_configuration_is_refused(run: Path, tmp_path: Path):
    other = Experiment.from_toml(write_small(tmp_path), ["seed=4", "strategy.num_rounds=1"]).run(tmp_path / "other")
    name = Path("checkpoint") / "state.safetensors"
    (run / name).write_bytes((other.path / name).read_bytes())
    with pytest.raises(CheckpointError):
        Experiment.from_run(run).resume(run)


def test_a_directory_that_is_no_run_cannot_be_resumed(tmp_path):
    with pytest.raises(RunError):
        Experiment.from_run(tmp_path)


def test_a_run_of_an_older_format_is_not_resumed_and_stays_as_it_is(run: Path):
    rounds = run / "rounds.jsonl"
    rounds.write_text(rounds.read_text().replace('"measures"', '"accuracy"'))
    before = files_in(run)
    with pytest.raises(RunError, match="an older version of fedelta wrote them"):
        Experiment.from_run(run).resume(run)
    assert files_in(run) == before


def test_a_run_that_spent_its_budget_is_finished_however_often_it_is_resumed(tmp_path):
    result = Experiment.from_toml(write_small(tmp_path), ["byte_budget_mib=0.001"]).run(tmp_path / "run")
    before = (result.path / "rounds.jsonl").read_bytes()
    Experiment.from_run(result.path).resume(result.path)
    assert (result.path / "rounds.jsonl").read_bytes() == before
    assert len(before.splitlines()) == 1


def test_a_run_that_another_process_holds_is_not_resumed(finished: Path):
    with RunDirectory.open(finished).locked(), pytest.raises(RunError, match="another process"):
        Experiment.from_run(finished).resume(finished)


def test_a_run_is_not_continued_on_other_data(tmp_path):
    config = write_small(tmp_path)
    whole = Experiment.from_toml(config).assembly.data
    half = replace(whole, partition={client: rows[: len(rows) // 2] for client, rows in whole.partition.items()})
    result = Experiment(load_config(config), data=half).run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="its data changed"):
        Experiment.from_run(result.path).resume(result.path)
