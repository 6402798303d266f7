"""Processes for real: killed with their parent, gone on with, failing, and the same bits however many there are."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.small import stop_after, write_small

import fedelta
from fedelta.comparison import launchers, pool
from fedelta.comparison.cells import make_plan
from fedelta.comparison.claims import joined
from fedelta.comparison.directory import CellRun, ComparisonDirectory
from fedelta.comparison.request import read_request

OVERRIDES = ("strategy.num_rounds=2",)
OVER = {"client.lr": [0.1, 1e30]}
PATIENCE_SECONDS = 60

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes as POSIX does")


def bits(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in ("rounds.jsonl", "ledger.jsonl", "config.toml")}


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def is_alive(process_id: int) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(process_id: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()]


def test_stopped_cells_go_on_with_the_same_bits_in_any_number_of_processes_beside_one_that_fails(tmp_path):
    config, out = write_small(tmp_path), tmp_path / "out"
    run = out / "runs" / "lr-0.1"
    ComparisonDirectory(out).make()
    cell = make_plan(read_request(config, OVER, OVERRIDES)).cells({(): None})[0]
    with pytest.raises(KeyboardInterrupt):
        fedelta.Experiment(cell.config).run(run, on_round=stop_after(1))
    assert not (run / "summary.json").exists()

    result = fedelta.compare(config, OVER, out, overrides=OVERRIDES, processes=2)
    with (out / "cells.csv").open(newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["finished", "failed"]
    assert result.failures["client.lr=1e+30"].startswith("RoundError: round 1: ")
    assert json.loads((run / "environment.json").read_text())["num_threads"] == 1

    undisturbed = fedelta.Experiment.from_toml(config, (*OVERRIDES, "client.lr=0.1")).run(tmp_path / "undisturbed")
    assert bits(run) == bits(undisturbed.path)
    assert result.groups["accuracy_mean"][0] == undisturbed.measures["accuracy"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_processes_die_with_a_comparison_that_is_killed_and_its_table_is_that_of_an_undisturbed_one(tmp_path):
    def begin(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from fedelta.cli import main; main()", "compare", str(write_small(tmp_path))]
        command += [
            "--over",
            "seed=1,2",
            "--set",
            "strategy.num_rounds=25",
            "--out",
            str(out),
            "--processes",
            "1",
            "--quiet",
        ]
        return subprocess.Popen(command)

    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    process = begin(out)
    rounds = out / "runs" / "seed-1" / "rounds.jsonl"
    wait_for(lambda: rounds.exists() and rounds.stat().st_size > 0)
    (server,) = children_of(process.pid)
    (worker,) = children_of(server)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not is_alive(server) and not is_alive(worker))
    assert not (out / "runs" / "seed-1" / "summary.json").exists()
    assert (begin(out).wait(), begin(undisturbed).wait()) == (0, 0)
    assert untimed(out) == untimed(undisturbed)


def untimed(out: Path) -> list[dict[str, str]]:
    with (out / "cells.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "wall_seconds"} for row in csv.DictReader(file)]


@pytest.fixture
def jobs(tmp_path) -> list[CellRun]:
    """Three cells, and a directory for them."""
    plan = make_plan(read_request(write_small(tmp_path), {"seed": [1, 2, 3]}))
    directory = ComparisonDirectory(tmp_path / "out")
    directory.make()
    return directory.jobs(plan.cells({(): None}))


@pytest.fixture
def claims(jobs, tmp_path):
    """Those of a process that is alone."""
    with joined(tmp_path / "out" / "claims", "") as alone:
        yield alone


START = "import os, sys, time, pathlib"
SPAWNED = """
run, failure = map(pathlib.Path, sys.argv[1:])
text = sys.stdin.buffer.read(int(sys.stdin.buffer.readline())).decode()
"""
FORKED = """
sys.path.insert(0, {source!r})
from fedelta.comparison.forkserver import serve
def cell(request):
    run, failure, text = pathlib.Path(request["run"]), pathlib.Path(request["failure"]), request["config"]
    {body}
    return 0
sys.exit(serve(int(sys.argv[1]), cell))
"""
PYTHON = (sys.executable, "-S", "-E", "-c")  # without site-packages: it starts in no time


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="cells are forked on Linux only")


@pytest.fixture(params=["spawned", pytest.param("forked", marks=needs_linux)])
def pretend(request, monkeypatch):
    """Processes of either kind that only do `body`: `run` and `failure` are paths, `text` is the configuration."""

    def replace(body: str) -> None:
        source = str(Path(fedelta.__file__).parents[1])
        forked = f"{START}\n{FORKED.format(source=source, body=body)}"
        monkeypatch.setattr(launchers, "WORKER", (*PYTHON, f"{START}\n{SPAWNED}\n{body}"))
        monkeypatch.setattr(launchers, "FORK_SERVER", (*PYTHON, forked))
        kind = launchers.Spawned if request.param == "spawned" else launchers.Forked
        monkeypatch.setattr(pool, "launcher_for", lambda jobs: kind())

    return replace


FINISH = "run.mkdir(); (run / 'summary.json').write_text('{}')"


def test_no_more_processes_run_than_asked_for(jobs, claims, pretend):
    pretend(FINISH)
    running = most = 0
    kinds = []
    for event in pool.run_jobs(jobs, claims=claims, processes=2):
        kinds.append(event.kind)
        running += {"started": 1, "finished": -1, "failed": -1}.get(event.kind, 0)
        most = max(most, running)
    assert (most, kinds.count("finished"), kinds.count("failed")) == (2, 3, 0)


def test_without_memory_for_two_one_runs_at_a_time(jobs, claims, pretend, monkeypatch):
    pretend(FINISH)
    monkeypatch.setattr(pool, "available_bytes", lambda: 0)
    monkeypatch.setattr(pool, "default_processes", lambda jobs: 3)
    kinds = [event.kind for event in pool.run_jobs(jobs, claims=claims)]
    assert kinds == ["started", "finished"] * 3


def test_a_process_that_is_killed_has_a_reason(jobs, claims, pretend):
    pretend("print('last words', flush=True); os.kill(os.getpid(), 9)")
    jobs[0].failure.write_text("the error of an earlier attempt")
    os.utime(jobs[0].failure, (0, 0))
    kinds = [event.kind for event in pool.run_jobs(jobs[:1], claims=claims, processes=1)]
    assert kinds == ["started", "failed"]
    assert jobs[0].reason() == (
        "Crash: the process was ended by SIGKILL. The system ends processes like that when memory runs out: try fewer "
        "`--processes`.\n\nlast words"
    )


def test_a_process_that_ends_before_its_request_has_a_reason(jobs, claims, pretend, monkeypatch):
    pretend("")
    for name in ("WORKER", "FORK_SERVER"):
        monkeypatch.setattr(launchers, name, (*PYTHON, "raise SystemExit('no library')"))
    assert [event.kind for event in pool.run_jobs(jobs[:2], claims=claims, processes=1)] == ["started", "failed"] * 2
    assert [job.reason() for job in jobs[:2]] == ["Crash: the process ended with exit code 1.\n\nno library"] * 2


@needs_linux
@pytest.mark.parametrize("pretend", ["forked"], indirect=True)
def test_a_fork_server_that_is_killed_loses_its_cells_and_no_others(jobs, claims, pretend):
    # The second cell kills the server while the first one runs; the third gets a new server.
    pretend(
        "index = int(run.name[-1]); run.mkdir(); (run / 'id').write_text(str(os.getpid()))\n"
        "    if index == 1: time.sleep(600)\n"
        "    if index == 2: os.kill(os.getppid(), 9); time.sleep(600)\n"
        "    (run / 'summary.json').write_text('{}')"
    )
    ends = {
        event.job.path.name: event.kind
        for event in pool.run_jobs(jobs, claims=claims, processes=2)
        if event.kind != "started"
    }
    assert ends == {"seed-1": "failed", "seed-2": "failed", "seed-3": "finished"}
    assert jobs[0].reason().startswith("Crash: the process was ended by SIGKILL.")
    for job in jobs[:2]:
        wait_for(lambda job=job: not is_alive(int((job.path / "id").read_text())))


def test_processes_end_when_the_iterator_is_closed(jobs, claims, pretend):
    pretend("run.mkdir(); (run / 'id').write_text(str(os.getpid())); time.sleep(600)")
    events = pool.run_jobs(jobs[:1], claims=claims, processes=1)
    assert next(events).kind == "started"
    path = jobs[0].path / "id"
    wait_for(lambda: path.exists() and path.read_text())
    events.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


def test_each_round_is_an_event(jobs, claims, pretend):
    measures = {4: "null", 5: '{"accuracy": 0.5}', 6: "null"}
    record = "".join(f'{{"round": {round}, "measures": {value}}}\\n' for round, value in measures.items())
    timing = '{"peak_memory_bytes": 77}\\n'
    body = (
        f"run.mkdir(); (run / 'rounds.jsonl').write_text('{record}'); (run / 'timings.jsonl').write_text('{timing}'); "
    )
    pretend(body + "(run / 'summary.json').write_text('{}')")
    events = list(pool.run_jobs(jobs[:1], claims=claims, processes=1))
    assert [(event.kind, event.round, event.final) for event in events] == [
        ("started", 0, None), ("round", 6, 0.5), ("finished", 6, 0.5),
    ]  # fmt: skip


def test_a_gpu_is_for_one(jobs, monkeypatch):
    assert pool.default_processes(jobs) >= 1
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert pool.default_processes(jobs) == 1


@pytest.mark.slow
def test_a_process_that_imports_everything_itself_gives_the_bits_of_a_forked_one(tmp_path, monkeypatch):
    runs = {}
    for name, launcher in (("forked", launchers.launcher_for), ("spawned", lambda _: launchers.Spawned())):
        monkeypatch.setattr(pool, "launcher_for", launcher)
        result = fedelta.compare(write_small(tmp_path), OVER, tmp_path / name, overrides=OVERRIDES, processes=2)
        assert list(result.failures) == ["client.lr=1e+30"]
        runs[name] = bits(tmp_path / name / "runs" / "lr-0.1")
    assert runs["spawned"] == runs["forked"]
