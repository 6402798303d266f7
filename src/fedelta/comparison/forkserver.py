"""A process that imports what cells need once, and forks a process for each cell.

Run as `python -m fedelta.comparison.forkserver LEASH`. Imports take several seconds, more than the whole run of a small
cell. A forked process gives the same bits as a new one, because all random numbers come from the seed.

A request is a line of JSON on standard input: the number of the cell, the paths `run`, `failure` and `log`, the
configuration as TOML, and the plug-ins. The answer is a line on standard output once the cell has ended: its number and
its exit code.
`LEASH` is a file descriptor; when its other end closes, the comparison is gone, and so are its cells.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fedelta.imports import collector_paused
from fedelta.models.native import register_networks

Request = dict[str, Any]  # Any: JSON values

# A forked process lacks the threads of its parent. These libraries start no threads on import, except Arrow's allocator
# (jemalloc), which restarts its thread after a fork.
PRELOADED = (
    "fedelta.comparison.worker",
    "sklearn.metrics",
    "datasets",
    "flwr_datasets.partitioner",
)
_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 5.0  # between asking a process to end and ending it


def main() -> int:
    """Serves requests until the input ends; returns the exit code."""
    with collector_paused():
        register_networks()
        for name in PRELOADED:
            import_module(name)
    return serve(int(sys.argv[1]), run_cell)


def run_cell(request: Request) -> int:
    """Runs a cell in this process; returns its exit code."""
    from fedelta.comparison.worker import run_cell as run_it

    return run_it(request["config"], request["plugins"], Path(request["run"]), Path(request["failure"]))


def serve(leash: int, run: Callable[[Request], int]) -> int:
    """Forks a process for each request until the input ends, then ends all processes; returns the exit code.

    Args:
        leash: a file descriptor whose other end closes when the comparison is gone.
        run: what a forked process does; it returns its exit code.
    """
    # Otherwise every forked process would copy the memory of all modules when it first collects garbage.
    gc.freeze()
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not mix with the answers
    request = _fork(sys.stdin.fileno(), answers)
    if request is not None:
        os.close(answers)
        _become_cell(Path(request["log"]), leash)
        _leave(run(request))
    return 0


def _fork(requests: int, answers: int) -> Request | None:
    """Returns in every forked process with its request, and in the server with None after the end of the requests."""
    running: dict[int, int] = {}  # process id to the number of the cell
    partial = b""
    while True:
        _answer(running, answers)
        if not select.select([requests], [], [], _POLL_SECONDS)[0]:
            continue
        chunk = os.read(requests, 2**16)
        if not chunk:
            _end(running)
            return None
        *lines, partial = (partial + chunk).split(b"\n")
        for request in map(json.loads, lines):
            process_id = os.fork()
            if process_id == 0:
                forked: Request = request
                return forked
            running[process_id] = request["number"]


def _answer(running: dict[int, int], answers: int) -> None:
    """Writes an answer for each process that has ended."""
    for process_id in list(running):
        ended, status = os.waitpid(process_id, os.WNOHANG)
        if ended:
            text = json.dumps([running.pop(process_id), os.waitstatus_to_exitcode(status)])
            os.write(answers, f"{text}\n".encode())


def _end(running: dict[int, int]) -> None:
    """Ends the processes that still run, and waits for their end."""
    for process_id in running:
        os.kill(process_id, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while running:
        for process_id in list(running):
            if os.waitpid(process_id, os.WNOHANG)[0]:
                del running[process_id]
            elif time.monotonic() > deadline:
                os.kill(process_id, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _become_cell(log: Path, leash: int) -> None:
    """Gives a forked process a log and no input, and makes it end with the comparison."""
    for descriptor, path in ((sys.stdin.fileno(), Path(os.devnull)), (sys.stdout.fileno(), log)):
        opened = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
    threading.Thread(target=_end_with, args=(leash,), daemon=True).start()


def _end_with(leash: int) -> None:
    while os.read(leash, 1):
        pass
    os._exit(1)


def _leave(code: int) -> None:
    """Ends a forked process without the interpreter's clean-up of all modules, which takes a second."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
