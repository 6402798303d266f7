"""Starts and ends the processes of cells: new processes on every system, forked ones where that is safe."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import IO, Protocol

from fedelta.comparison.directory import CellRun
from fedelta.plugins import for_processes
from fedelta.runtimes.settings import VISIBLE_GPUS, gpus

# -P: a folder in the current directory with the name of a library must not replace it.
_PYTHON = (sys.executable, "-P", "-m")
WORKER = (*_PYTHON, "fedelta.comparison.worker")
FORK_SERVER = (*_PYTHON, "fedelta.comparison.forkserver")
_PATIENCE_SECONDS = 10.0  # between asking a process to end and ending it
# Read once, when torch and the libraries below it are loaded.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

Poll = Callable[[], int | None]
"""The exit code of a process, negative for a signal; None while it runs."""


class Launcher(Protocol):
    """Starts a process for each cell."""

    def start(self, job: CellRun) -> Poll:
        """Starts the process of `job` with an empty log; returns a function that gives its exit code after its end."""

    def stop(self) -> None:
        """Ends the processes that still run, and waits for their end."""


def launcher_for(jobs: Sequence[CellRun]) -> Launcher:
    """Forked processes if that is safe, else new ones; safe means Linux without a GPU, which a fork cannot use."""
    uses_gpu = any(job.cell.config.runtime.torch_device() != "cpu" for job in jobs)
    return Forked() if sys.platform == "linux" and not uses_gpu else Spawned(gpus() if uses_gpu else ())


def has_one_gpu(job: CellRun) -> bool:
    """Whether a cell gets a GPU for itself: not if it runs on a CPU, or asks for several workers, which take all."""
    runtime = job.cell.config.runtime
    return runtime.torch_device() != "cpu" and runtime.workers in ("auto", 1)


class Spawned:
    """Starts new processes, each of which imports everything itself (worker.py).

    Args:
        names: of the GPUs; a cell sees one of them only, whose number of clients side by side then is that of any
            other cell.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._in_use = dict.fromkeys(names, 0)

    def start(self, job: CellRun) -> Poll:
        """See `Launcher.start`."""
        gpu = min(self._in_use, key=lambda name: self._in_use[name], default=None) if has_one_gpu(job) else None
        with job.log.open("wb") as log:
            process = _open(
                [*WORKER, str(job.path), str(job.failure), *for_processes()],
                stdout=log,
                stderr=subprocess.STDOUT,
                environment={} if gpu is None else {VISIBLE_GPUS: gpu},
            )
        text = job.cell.config.to_toml().encode()
        _write(process, b"%d\n" % len(text) + text)
        self._processes.append(process)
        return process.poll if gpu is None else self._using(gpu, process.poll)

    def _using(self, gpu: str, poll: Poll) -> Poll:
        """A `poll` of a process on this GPU, which frees it at its end."""
        self._in_use[gpu] += 1
        code: int | None = None

        def freeing() -> int | None:
            nonlocal code
            if code is None and (code := poll()) is not None:
                self._in_use[gpu] -= 1
            return code

        return freeing

    def stop(self) -> None:
        """See `Launcher.stop`."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            _wait(process)


class Forked:
    """Starts processes through a fork server (forkserver.py); a killed server is replaced."""

    def __init__(self) -> None:
        self._server: _Server | None = None

    def start(self, job: CellRun) -> Poll:
        """See `Launcher.start`."""
        job.log.write_bytes(b"")
        if self._server is None or self._server.has_ended:
            self.stop()
            self._server = _Server(job)
        return self._server.start(job)

    def stop(self) -> None:
        """See `Launcher.stop`."""
        if self._server is not None:
            self._server.stop()


class _Server:
    """A fork server and the exit codes of its processes.

    Args:
        job: its first job; the log of the server is beside the log of this job.
    """

    def __init__(self, job: CellRun) -> None:
        self._log = job.log.with_name("forkserver.txt")
        leash, self._leash = os.pipe()
        with self._log.open("wb") as log:
            command = [*FORK_SERVER, str(leash)]
            self._process = _open(command, stdout=subprocess.PIPE, stderr=log, pass_fds=(leash,))
        os.close(leash)
        os.set_blocking(_output(self._process).fileno(), False)
        self._codes: dict[int, int] = {}
        self._num_started = 0
        self._partial = b""

    @property
    def has_ended(self) -> bool:
        """Whether the server was killed or could not be started."""
        return self._process.poll() is not None

    def start(self, job: CellRun) -> Poll:
        """Requests a process."""
        number = self._num_started = self._num_started + 1
        paths = {"run": str(job.path), "failure": str(job.failure), "log": str(job.log)}
        request = {"number": number, **paths, "config": job.cell.config.to_toml(), "plugins": for_processes()}
        _write(self._process, f"{json.dumps(request)}\n".encode())
        return lambda: self._code(number, job)

    def stop(self) -> None:
        """Ends the server and its processes."""
        _close(self._process)
        _wait(self._process)
        os.close(self._leash)
        _output(self._process).close()

    def _code(self, number: int, job: CellRun) -> int | None:
        has_ended = self.has_ended  # asked before the answers are read, so that none of its answers is missed
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(_output(self._process).fileno(), 2**16):
                *lines, self._partial = (self._partial + chunk).split(b"\n")
                self._codes |= dict(map(json.loads, lines))
        if number not in self._codes and has_ended:
            job.log.write_bytes(job.log.read_bytes() + self._log.read_bytes())
            self._codes[number] = self._process.returncode or 1
        return self._codes.get(number)


def _open(
    command: Sequence[str],
    *,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    pass_fds: tuple[int, ...] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **_ENVIRONMENT, **environment},
        pass_fds=pass_fds,
        start_new_session=True,  # Ctrl-C must only reach the comparison, which ends its processes itself
    )


def _write(process: subprocess.Popen[bytes], content: bytes) -> None:
    # If the server is gone, the next poll notices it.
    with contextlib.suppress(BrokenPipeError):
        _input(process).write(content)
        _input(process).flush()


def _close(process: subprocess.Popen[bytes]) -> None:
    # Closing flushes the buffer, which fails again.
    with contextlib.suppress(BrokenPipeError):
        _input(process).close()


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Waits for a process that was asked to end, and kills it after a while."""
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _close(process)


def _input(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdin is None:
        raise ValueError("the process was started without a pipe to it")
    return process.stdin


def _output(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdout is None:
        raise ValueError("the process was started without a pipe from it")
    return process.stdout
