"""Several comparisons on one directory: each cell is run by one of them, those of a dead one by the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.comparison.test_processes import is_alive, untimed, wait_for
from tests.small import write_small

import fedelta
from fedelta.comparison import claims as module
from fedelta.comparison import compare
from fedelta.comparison.cells import make_plan
from fedelta.comparison.claims import joined
from fedelta.comparison.directory import CellRun, ComparisonDirectory
from fedelta.comparison.request import read_request
from fedelta.errors import RunError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes as POSIX does")


def cells_in(folder: Path, seeds: list[int]) -> list[CellRun]:
    config = folder / "small.toml"
    if not config.exists():
        write_small(folder)
    directory = ComparisonDirectory(folder / "out")
    directory.make()
    return directory.jobs(make_plan(read_request(config, {"seed": seeds})).cells({(): None}))


def place(cells: list[CellRun]) -> Path:
    return cells[0].path.parents[1] / "claims"


def finish(cell: CellRun) -> None:
    cell.path.mkdir()
    (cell.path / "summary.json").touch()


@pytest.fixture
def cells(tmp_path) -> list[CellRun]:
    """Two cells, and a directory for them."""
    return cells_in(tmp_path, [1, 2])


@pytest.fixture
def start():
    """Starts processes, which do not outlive the test."""
    with ExitStack() as stack:

        def begin(command: list[str], **options: object):
            process = stack.enter_context(subprocess.Popen(command, **options))
            stack.callback(process.kill)
            return process

        yield begin


def test_a_cell_is_taken_once_and_left_when_it_has_ended(cells):
    first, second = cells
    with joined(place(cells), "") as mine, joined(place(cells), "") as theirs:
        assert (mine.take(first), theirs.take(first)) == (True, False)
        assert theirs.sort(cells) == ([], [second])
        finish(first)
        mine.release(first)
        assert theirs.sort(cells) == ([first], [second])
        assert not theirs.take(first)
        assert mine.take(second)
    assert list(place(cells).iterdir()) == []


def test_a_cell_that_failed_while_others_were_at_work_is_tried_again_only_by_a_later_comparison(cells):
    with joined(place(cells), "") as first:
        cells[0].failure.write_text("RoundError: no\n")
        with joined(place(cells), "") as joining:
            assert joining.since_ns == first.since_ns
            assert joining.sort(cells) == ([cells[0]], [cells[1]])
    os.utime(cells[0].failure, ns=(0, 0))
    with joined(place(cells), "") as later:
        assert later.sort(cells) == ([], cells)


def test_a_silent_job_on_another_machine_loses_its_cells_and_is_told_so(cells, monkeypatch):
    here = module.machine_id()
    monkeypatch.setattr(module, "machine_id", lambda: "elsewhere")
    with joined(place(cells), "") as far:
        monkeypatch.setattr(module, "machine_id", lambda: here)
        assert far.take(cells[0])
        with joined(place(cells), "") as near:
            record = place(cells) / far.job
            beat = record.stat().st_mtime
            os.utime(record, (beat, beat - module.SILENT_SECONDS / 2))
            assert near.sort(cells) == ([], [cells[1]])
            os.utime(record, (beat, beat - module.SILENT_SECONDS - 5))
            assert near.sort(cells) == ([], cells)
            assert near.take(cells[0])
            with pytest.raises(RunError, match="was silent for more than 300 seconds; others go on with its cells"):
                far.sort(cells)
            far.release_all()
            assert near.sort(cells) == ([], [cells[1]])


def test_a_job_touches_its_file(cells, monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    with joined(place(cells), "") as claims:
        record = place(cells) / claims.job
        os.utime(record, (0, 0))
        wait_for(lambda: record.stat().st_mtime > 0)


def test_a_claim_that_is_being_written_is_respected_unless_its_job_was_killed_then(cells):
    with joined(place(cells), "") as claims:
        claim = place(cells) / "seed-1.0.claim"
        claim.touch()
        assert claims.sort(cells) == ([], [cells[1]])
        assert not claims.take(cells[0])
        os.utime(claim, (0, 0))
        assert claims.sort(cells) == ([], cells)
        assert claims.take(cells[0])


def test_a_run_that_somebody_resumes_is_left_alone(cells):
    cells[0].path.mkdir()
    (cells[0].path / "config.toml").touch()
    with joined(place(cells), "") as claims:
        with module.exclusive(cells[0].path / "config.toml", ""):
            assert not claims.take(cells[0])
        assert claims.take(cells[0])


def test_another_comparison_is_refused_while_one_is_at_work(tmp_path, cells, inline):
    config = write_small(tmp_path)
    with joined(place(cells), "another"), pytest.raises(RunError, match=r"another process runs another comparison in"):
        fedelta.compare(config, {"seed": [1]}, tmp_path / "out", overrides=["strategy.num_rounds=1"])
    assert inline == []
    assert not (tmp_path / "out" / "compare.toml").exists()


def test_cells_that_end_elsewhere_while_the_last_tables_are_written_are_in_them(
    tmp_path, inline, run_cells, monkeypatch
):
    def leave_the_last(jobs, **_: object):
        yield from run_cells(jobs[:1])

    drawn: list[list[str]] = []

    def draw(comparison) -> str:
        drawn.append(comparison.frame["state"].tolist())
        if len(drawn) == 1:
            list(run_cells(cells_of_grid[1:]))
        return "no page"

    config, over, overrides = write_small(tmp_path), {"seed": [1, 2]}, ["strategy.num_rounds=1"]
    plan = make_plan(read_request(config, over, overrides))
    cells_of_grid = ComparisonDirectory(tmp_path / "out").jobs(plan.cells({(): None}))
    monkeypatch.setattr(compare, "run_jobs", leave_the_last)
    monkeypatch.setattr(compare, "render", draw)
    monkeypatch.setattr(compare._Work, "_take", lambda work, event: None)  # no tables before the last
    assert fedelta.compare(config, over, tmp_path / "out", overrides=overrides).is_finished
    assert drawn == [["finished", "waiting"], ["finished", "finished"]]
    assert [row["state"] for row in untimed(tmp_path / "out")] == ["finished", "finished"]


# A cell that waits for the file `hold` to go; its process ends with its comparison.
CELL = """
import threading
run, failure = map(pathlib.Path, sys.argv[1:])
sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
with (run.parent / "begun").open("a") as begun:
    begun.write(f"{run.name} {os.getpid()}\\n")
run.mkdir(exist_ok=True)
while (run.parent / "hold").exists():
    time.sleep(0.02)
if run.name == "seed-6":
    failure.write_text("RoundError: no")
    sys.exit(1)
(run / "summary.json").write_text("{}")
"""
COMPARISON = """
import sys
from pathlib import Path
from tests.comparison.test_claims import CELL, cells_in, place
from tests.comparison.test_processes import START
from fedelta.comparison import launchers, pool
from fedelta.comparison.claims import joined
launchers.WORKER = (sys.executable, "-S", "-E", "-c", START + CELL)
pool.launcher_for = lambda jobs: launchers.Spawned()
cells = cells_in(Path(sys.argv[1]), list(range(1, 9)))
with joined(place(cells), "") as claims:
    for event in pool.run_jobs(cells, claims=claims, processes=1):
        print(event.kind, event.job.name, flush=True)
"""


def test_three_processes_share_the_cells_and_those_of_a_killed_one(tmp_path, start):
    runs = tmp_path / "out" / "runs"
    runs.mkdir(parents=True)
    (runs / "hold").touch()
    (runs / "begun").touch()
    write_small(tmp_path)
    command, root = [sys.executable, "-c", COMPARISON, str(tmp_path)], Path(__file__).resolve().parents[2]
    jobs = [start(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(3)]
    wait_for(lambda: len((runs / "begun").read_text().splitlines()) == len(jobs))
    first = jobs[0].stdout.readline().split()[1]
    os.kill(jobs[0].pid, signal.SIGKILL)
    jobs[0].wait()
    begun = dict(line.split() for line in (runs / "begun").read_text().splitlines())
    wait_for(lambda: not is_alive(int(begun[first])))
    (runs / "hold").unlink()
    ends = []
    for job in jobs[1:]:
        lines = job.communicate()[0].splitlines()
        assert job.returncode == 0
        ends.append({name: kind for kind, name in map(str.split, lines) if kind != "started"})
    everything = {f"seed-{seed}": "failed" if seed == 6 else "finished" for seed in range(1, 9)}
    assert ends == [everything, everything]
    times = Counter(line.split()[0] for line in (runs / "begun").read_text().splitlines())
    assert times == Counter([*everything, first])
    assert list((tmp_path / "out" / "claims").iterdir()) == []


@pytest.mark.slow
def test_the_table_of_three_comparisons_of_which_one_is_killed_is_that_of_one(tmp_path, start):
    def begin(out: Path):
        command = [sys.executable, "-c", "from fedelta.cli import main; main()", "compare", str(write_small(tmp_path))]
        command += ["--over", "seed=1,2,3,4,5,6", "--set", "strategy.num_rounds=25", "--out", str(out)]
        return start([*command, "--processes", "1", "--quiet"])

    shared, alone = tmp_path / "shared", tmp_path / "alone"
    jobs = [begin(shared) for _ in range(3)]

    def claimed() -> list[str]:
        """The cells of the first job."""
        return [
            path.name.partition(".")[0]
            for path in (shared / "claims").glob("*.claim")
            if f"-{jobs[0].pid}-" in path.read_text()
        ]

    wait_for(lambda: any((shared / "runs" / name / "rounds.jsonl").exists() for name in claimed()))
    (cell,) = claimed()
    os.kill(jobs[0].pid, signal.SIGKILL)
    jobs[0].wait()
    assert not (shared / "runs" / cell / "summary.json").exists()
    assert [job.wait() for job in jobs[1:]] == [0, 0]
    assert begin(alone).wait() == 0
    assert untimed(shared) == untimed(alone)
    assert [json.loads(path.read_text())["measures"] for path in sorted(shared.glob("runs/*/summary.json"))] == [
        json.loads(path.read_text())["measures"] for path in sorted(alone.glob("runs/*/summary.json"))
    ]
