"""Asks the worker of a site, which keeps model and data loaded. Imports no torch: a caller may live for one message.

The worker is started when it is needed. If it dies while it works on a message, it is started again and asked again:
the answer to a message does not depend on how often it was asked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from socket import socket

from fedelta.errors import LinkError, PayloadError
from fedelta.runtimes.remote.frames import receive, send
from fedelta.runtimes.remote.messages import FAILED, REFUSED, Message
from fedelta.runtimes.remote.worker_files import WorkerFiles, connected, is_locked, state_of

_NUM_TRIES = 3
_START_SECONDS = 60.0  # to listen, which a worker does before it loads anything; a busy machine may be slow
_END_SECONDS = 5.0
_PAUSE = 0.02
_MAX_ANSWER_BYTES = 2**40  # the worker is trusted; the link has its own limit
_LONGEST_OUTPUT = 2**20


def ask(folder: str | Path, message: Message) -> Message:
    """The worker's answer to a message; `refused` with the cause "site failed" if the worker dies again and again.

    Args:
        folder: of the site, with its `site.toml`.
        message: of the server.

    Raises:
        InputError: the site's settings or its secret cannot be read.
    """
    files = WorkerFiles(state_of(folder))
    endings = []
    for _ in range(_NUM_TRIES):
        try:
            connection = _connection(Path(folder).absolute(), files)
        except LinkError as error:
            return _failed(message, error.message)
        pid = files.worker_pid()
        with connection:
            try:
                connection.sendall(files.secret())
                send(connection, message)
                return receive(connection, _MAX_ANSWER_BYTES)
            except (OSError, PayloadError):
                endings.append(_ending(pid))
    return _failed(message, f"its worker ended {_NUM_TRIES} times while it worked on it ({', '.join(endings)})")


def stop(folder: str | Path) -> None:
    """Ends the worker of a site, if it lives."""
    files = WorkerFiles(state_of(folder))
    for number in (signal.SIGTERM, signal.SIGKILL):
        pid, until = files.worker_pid(), time.monotonic() + _END_SECONDS
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        while is_locked(files.lock) and time.monotonic() < until:
            time.sleep(_PAUSE)
        _ending(pid)


def _connection(folder: Path, files: WorkerFiles) -> socket:
    """A connection with the worker, which is started if it does not live.

    Raises:
        LinkError: it does not start.
    """
    until = time.monotonic() + _START_SECONDS
    pid: int | None = None
    while (connection := connected(files.socket)) is None:
        if pid is None and not is_locked(files.lock):
            pid = _start(folder, files)
        if pid is not None and (code := _exit_code(pid)) is not None:
            if code != 0:  # 0: another worker has been first
                raise LinkError(f"its worker cannot start: {_described(code)}")
            pid = None
        if time.monotonic() > until:
            raise LinkError(f"its worker does not answer for {_START_SECONDS:g} s")
        time.sleep(_PAUSE)
    return connection


def _start(folder: Path, files: WorkerFiles) -> int:
    """Starts a worker, which lives on when this process ends, and returns its process id."""
    files.secret()  # makes the folder too
    _forget_ended(files)
    fresh = os.O_TRUNC if files.output.exists() and files.output.stat().st_size > _LONGEST_OUTPUT else 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | fresh
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "fedelta.deployment.site.worker", str(folder)],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(files.output), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )


def _forget_ended(files: WorkerFiles) -> None:
    """Lets the operating system forget the last worker, if it was a child of this process."""
    with contextlib.suppress(OSError, ValueError):
        os.waitpid(int(files.lock.read_text(encoding="utf-8")), os.WNOHANG)


def _ending(pid: int | None) -> str:
    """How a worker has ended, as far as this process, if it has started it, can know."""
    until = time.monotonic() + _END_SECONDS
    with contextlib.suppress(ChildProcessError):
        while pid is not None and time.monotonic() < until:
            if (code := _exit_code(pid)) is not None:
                return _described(code)
            time.sleep(_PAUSE)
    return "how is not known"


def _exit_code(pid: int) -> int | None:
    """The exit code of a process, once it has ended; minus the signal that ended it.

    Raises:
        ChildProcessError: this process has not started it, or knows its end already.
    """
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _described(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed, as by an operating system without free memory"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _failed(message: Message, why: str) -> Message:
    reason = f"the site failed at a message {message.kind!r} because {why}"
    hint = "the site's `state/worker.log` and `state/worker.err` say more."
    return Message(REFUSED, {"reason": reason, "hint": hint, "cause": FAILED})
