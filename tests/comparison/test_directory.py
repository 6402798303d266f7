"""The directory of a comparison: what is done in it is used, what is something else is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.small import write_small

import fedelta
from fedelta.comparison.cells import make_plan
from fedelta.comparison.directory import ComparisonDirectory, default_out
from fedelta.comparison.request import read_request
from fedelta.errors import RunError


def cells_of(folder: Path, over: dict[str, object], *overrides: str):
    return make_plan(read_request(write_small(folder), over, overrides)).cells({(): None})


def pretend(path: Path, cell) -> None:
    """A run directory as far as a comparison looks at it."""
    path.mkdir(parents=True)
    (path / "config.toml").write_text(cell.config.to_toml())


def test_a_cell_has_a_directory_of_its_name(tmp_path):
    (job,) = ComparisonDirectory(tmp_path).jobs(cells_of(tmp_path, {"seed": [1]}))
    assert (job.path, job.is_finished, job.reason()) == (tmp_path / "runs" / "seed-1", False, None)
    job.failure.parent.mkdir()
    job.failure.write_text("RoundError: no\n")
    assert job.reason() == "RoundError: no"
    pretend(job.path, job.cell)
    (job.path / "summary.json").touch()
    assert (job.is_finished, job.reason()) == (True, None)


def test_a_run_with_the_same_configuration_is_used_under_whatever_name(tmp_path):
    (cell,) = cells_of(tmp_path, {"seed": [1]})
    pretend(tmp_path / "runs" / "from another grid", cell)
    (job,) = ComparisonDirectory(tmp_path).jobs([cell])
    assert job.path == tmp_path / "runs" / "from another grid"


def test_runs_of_another_configuration_are_refused_with_what_differs(tmp_path):
    for cell in cells_of(tmp_path, {"seed": [1, 2]}, "strategy.num_rounds=9", "tuning.r=4"):
        pretend(tmp_path / "runs" / cell.slug, cell)
    with pytest.raises(RunError) as caught:
        ComparisonDirectory(tmp_path).jobs(cells_of(tmp_path, {"seed": [1, 2, 3]}))
    assert caught.value.message == (
        f"run directories in {str(tmp_path)!r} hold other configurations than are asked for now:\n"
        "  - runs/seed-1 and 1 more: `tuning.r` is 4 there, 2 now; `strategy.num_rounds` is 9 there, 3 now"
    )
    assert caught.value.hint == "choose another `--out`, or remove those directories to run their cells anew."


def test_a_damaged_configuration_is_refused(tmp_path):
    (cell,) = cells_of(tmp_path, {"seed": [1]})
    pretend(tmp_path / "runs" / "seed-1", cell)
    (tmp_path / "runs" / "seed-1" / "config.toml").write_text("[")
    with pytest.raises(RunError, match=r"runs/seed-1: its `config\.toml` is damaged"):
        ComparisonDirectory(tmp_path).jobs([cell])


def test_a_directory_with_other_things_is_refused(tmp_path):
    file = write_small(tmp_path)
    with pytest.raises(RunError, match="is a file, expected a directory"):
        ComparisonDirectory(file).refuse_foreign()
    with pytest.raises(
        RunError, match="holds other things, expected a new directory or one that `fedelta compare` made"
    ):
        ComparisonDirectory(tmp_path).refuse_foreign()
    (tmp_path / "config.toml").touch()
    with pytest.raises(RunError, match="is a run directory, expected"):
        ComparisonDirectory(tmp_path).refuse_foreign()
    ComparisonDirectory(tmp_path / "new").refuse_foreign()


def test_a_comparison_goes_on_beside_its_own_file_and_never_beside_another(tmp_path):
    own = tmp_path / "compare.toml"
    own.touch()
    assert default_out(own) == Path("runs/compare-compare")
    ComparisonDirectory(tmp_path).make()
    assert default_out(own) == tmp_path
    assert default_out(write_small(tmp_path)) == Path("runs/compare-small")
    assert default_out(fedelta.load_config(write_small(tmp_path))) == Path("runs/compare")


def test_what_a_kill_left_behind_is_removed(tmp_path):
    directory = ComparisonDirectory(tmp_path)
    directory.make()
    for name in (".seed-1.77.partial", ".seed-2.78.partial", "seed-1"):
        (tmp_path / "runs" / name).mkdir()
    os.utime(tmp_path / "runs" / ".seed-1.77.partial", ns=(10, 10))
    directory.clean(11)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [".seed-2.78.partial", "seed-1"]


def test_a_run_that_is_being_made_is_not_used_for_its_cell(tmp_path):
    (cell,) = cells_of(tmp_path, {"seed": [1]})
    pretend(tmp_path / "runs" / ".seed-1.77.partial", cell)
    (job,) = ComparisonDirectory(tmp_path).jobs([cell])
    assert job.path == tmp_path / "runs" / "seed-1"
