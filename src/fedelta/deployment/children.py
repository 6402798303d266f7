"""Programs that are started again when they end, and end with this process, even if it is killed."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

_LOG_BYTES, _NUM_LOGS = 10 * 2**20, 3
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
# A program that ran this long has started well: the next pause is the first one again.
_WELL_SECONDS = 60.0
_END_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Lets the kernel kill this process when its parent ends; on other systems than Linux does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def bound(command: Sequence[str]) -> list[str]:
    """The command that runs `command` until this process ends.

    The new process binds itself before it becomes the program: code between fork and exec may block where there are
    threads.
    """
    return [sys.executable, "-m", "fedelta.deployment.children", str(os.getpid()), *command]


@dataclass(frozen=True)
class Program:
    """What to start.

    Args:
        name: for messages, and of its log.
        command: program and arguments; the list of processes shows them to everyone on this machine.
        environment: all of it.
        log: file for what it prints; rotated, so that it keeps 40 MiB at most.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path


@dataclass
class Child:
    """A program that is kept running.

    Start it from the main thread only: the kernel ends it with the thread that started it.

    Args:
        program: what to start.
        clock: monotonic seconds.
    """

    program: Program
    clock: Callable[[], float] = time.monotonic
    num_starts: int = field(default=0, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _started: float = field(default=0.0, init=False)
    _pause: float = field(default=_FIRST_PAUSE, init=False)
    _next: float = field(default=0.0, init=False)

    @property
    def pid(self) -> int | None:
        """The number of its process, if it runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def keep(self) -> str | None:
        """Starts it if it does not run and its pause is over; says so if it had ended, with its exit code."""
        if self.pid is not None:
            return None
        message = None
        if self._process is not None:
            message = f"{self.program.name} ended with exit code {self._process.returncode}; it is started again"
            ran = self.clock() - self._started
            self._pause = _FIRST_PAUSE if ran >= _WELL_SECONDS else min(2 * self._pause, _LONGEST_PAUSE)
            self._next = self.clock() + (0 if ran >= _WELL_SECONDS else self._pause)
            self._process = None
        if self.clock() >= self._next:
            self.start()
        return message

    def start(self) -> None:
        """Starts it in a session of its own, so that Ctrl-C reaches this process only."""
        self._process = subprocess.Popen(  # noqa: S603 the commands are ours
            bound(self.program.command),
            env=dict(self.program.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._started = self.clock()
        self.num_starts += 1
        threading.Thread(target=_copy, args=(self._process.stdout, self.program.log), daemon=True).start()

    def end(self) -> None:
        """Ends it: first by request, then at once."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def last_lines(self, num_lines: int = 15) -> str:
        """The end of its log."""
        try:
            return "\n".join(self.program.log.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])
        except OSError:
            return ""


class _Log(RotatingFileHandler):
    """A log that says nothing when the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 logging's name
        """Loses the line."""


def _copy(stream: IO[bytes] | None, path: Path) -> None:
    """Writes what a program prints to its log, with the time of each line; where the disk is full lines are lost."""
    if stream is None:
        return
    handler = _Log(path, maxBytes=_LOG_BYTES, backupCount=_NUM_LOGS, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    with contextlib.closing(handler), stream:
        for line in stream:
            text = line.decode("utf-8", "replace").rstrip()
            handler.emit(logging.LogRecord("", logging.INFO, "", 0, "%s", (text,), None))


def _main(parent: str, *command: str) -> None:
    """Becomes `command`, which ends with its parent."""
    die_with_parent()
    if os.getppid() == int(parent):  # else it has ended meanwhile
        os.execvp(command[0], command)  # noqa: S606 the commands are ours


if __name__ == "__main__":
    _main(*sys.argv[1:])
