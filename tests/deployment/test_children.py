from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedelta.deployment.children import Child, Program, bound


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Makes children with their own clock, and ends them."""
    children: list[Child] = []

    def make(code: str, clock: Callable[[], float] = time.monotonic) -> Child:
        child = Child(Program("trial", [sys.executable, "-c", code], dict(os.environ), tmp_path / "trial.log"), clock)
        children.append(child)
        return child

    yield make
    for child in children:
        child.end()


def test_a_program_that_ends_is_started_again_after_a_pause_that_grows(start: Callable[..., Child]):
    now = 0.0
    child = start("raise SystemExit(3)", lambda: now)
    child.start()
    pauses = []
    for _ in range(3):
        _until(lambda: child.pid is None)
        message, begin = child.keep(), now
        assert message == "trial ended with exit code 3; it is started again"
        while child.num_starts == len(pauses) + 1:
            now += 0.5
            child.keep()
        pauses.append(now - begin)
    assert pauses == [1.0, 2.0, 4.0]  # twice as long each time


def test_a_program_that_ran_well_is_started_again_at_once(start: Callable[..., Child]):
    now = 0.0
    child = start("import time; time.sleep(60)", lambda: now)
    child.start()
    now = 100.0
    os.kill(child.pid or 0, signal.SIGKILL)
    _until(lambda: child.pid is None)
    assert child.keep() == "trial ended with exit code -9; it is started again"
    assert child.num_starts == 2


def test_what_a_program_prints_is_in_its_log_with_the_time(start: Callable[..., Child]):
    child = start("print('hello')")
    child.start()
    _until(lambda: "hello" in child.last_lines())
    assert child.last_lines()[:2] == "20"  # the year


def test_a_program_that_does_not_end_when_asked_is_killed(start: Callable[..., Child], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedelta.deployment.children._END_SECONDS", 0.2)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    child = start(code)
    child.start()
    _until(lambda: "ready" in child.last_lines())
    pid = child.pid or 0
    child.end()
    assert not _is_alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal for it")
def test_programs_die_with_the_process_that_started_them_even_if_it_is_killed(tmp_path: Path):
    code = (
        "import subprocess, sys, time\n"
        "from fedelta.deployment.children import bound\n"
        "child = subprocess.Popen(bound([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)']),"
        " stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _is_alive(child)
        parent.kill()
    _until(lambda: not _is_alive(child))


def test_a_program_whose_parent_has_gone_meanwhile_does_not_begin(tmp_path: Path):
    command = bound([sys.executable, "-c", "print('begun')"])
    command[3] = "1"  # not the parent of what follows
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def _until(is_so: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
