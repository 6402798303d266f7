"""Asking a worker: here with stand-ins for it; tests/deployment/test_worker.py has the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedelta.errors import InputError
from fedelta.runtimes.remote.caller import ask, stop
from fedelta.runtimes.remote.messages import REFUSED, Message
from fedelta.runtimes.remote.worker_files import state_of

MESSAGE = Message("train", {"round": 1})

DIES_AT_WORK = """
import fcntl, os, socket, sys
os.chdir(sys.argv[-1] + "/state")
lock = open("worker.lock", "w"); fcntl.flock(lock, fcntl.LOCK_EX); lock.write(str(os.getpid())); lock.flush()
try: os.unlink("worker.sock")
except FileNotFoundError: pass
listener = socket.socket(socket.AF_UNIX); listener.bind("worker.sock"); listener.listen()
listener.accept()[0].recv(32)
open("asked", "a").write("x")
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def site(tmp_path) -> Path:
    (tmp_path / "site.toml").write_text('name = "hamburg"\n')
    return tmp_path


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, command: str) -> None:
    """Lets `command` be started for a worker."""
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{command}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_a_worker_that_cannot_start_is_told_and_not_waited_for(site, monkeypatch):
    stand_in(monkeypatch, site, "exit 3")
    answer = ask(site, MESSAGE)
    assert answer.kind == REFUSED
    assert answer.manifest["reason"] == (
        "the site failed at a message 'train' because its worker cannot start: exit code 3"
    )
    assert answer.manifest["cause"] == "site failed"


def test_a_worker_that_dies_at_its_work_is_started_again_but_not_for_ever(site, monkeypatch):
    (site / "worker.py").write_text(DIES_AT_WORK)
    stand_in(monkeypatch, site, f'exec "{sys.executable}" -S "{site}/worker.py" "$@"')
    reason = ask(site, MESSAGE).manifest["reason"]
    assert "its worker ended 3 times while it worked on it" in reason
    assert reason.count("killed, as by an operating system without free memory") == 3
    assert (site / "state/asked").read_text() == "xxx"


def test_to_stop_a_worker_that_does_not_live_is_no_error(site):
    stop(site)


@pytest.mark.parametrize(("text", "problem"), [(None, "No such file"), ("name =", "cannot be read")])
def test_a_folder_that_is_no_site_is_an_error_of_the_user(tmp_path, text, problem):
    if text is not None:
        (tmp_path / "site.toml").write_text(text)
    with pytest.raises(InputError, match=problem):
        ask(tmp_path, MESSAGE)


def test_the_state_is_where_the_settings_say(site, tmp_path):
    assert state_of(site) == site / "state"
    (site / "site.toml").write_text('state = "/var/site"\n')
    assert state_of(site) == Path("/var/site")


def test_a_caller_loads_neither_torch_nor_numpy():
    command = (
        "import sys, fedelta.runtimes.remote.caller; print(sorted({'torch', 'numpy', 'pydantic'} & {*sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
