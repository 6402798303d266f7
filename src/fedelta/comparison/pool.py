"""Cells in processes: as many side by side as fit, each with one arithmetic thread.

One thread, however many run: sums of floats then have the same order, and the results the same bits, whatever the
number of processes. Nothing here writes results; a caller that stops listening ends the processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import IO, Literal

from fedelta.comparison.cores import available_cores
from fedelta.comparison.directory import Job
from fedelta.comparison.memory import available_bytes, fits
from fedelta.plugins import for_processes
from fedelta.record.files import Record
from fedelta.record.rundir import RunDirectory

# -P: a folder of the user's with the name of a library must not stand in for it.
COMMAND = (sys.executable, "-P", "-m", "fedelta.comparison.worker")
_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 5.0  # between asking a process to end and ending it
# Read once, when torch and the libraries below it are loaded.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Event:
    """Something that happened to a cell.

    Args:
        kind: `round` says how far it is; it may skip rounds.
        job: the cell.
        round: the last finished one, 0 before the first.
        final: the primary measure in the last evaluated round; None before the first.
    """

    kind: Literal["started", "round", "finished", "failed"]
    job: Job
    round: int = 0
    final: float | None = None


@dataclass
class _Worker:
    """A process and what is known of its run; changed by `_look`."""

    job: Job
    process: subprocess.Popen[bytes]
    log_bytes: int = -1
    round: int = 0
    final: float | None = None
    peak_bytes: int = 0


def run_jobs(jobs: Sequence[Job], *, processes: int | None = None, highest_peak: int = 0) -> Generator[Event]:
    """Runs jobs in their order; yields what happens. Closing the iterator ends the processes.

    Args:
        jobs: those that are not finished.
        processes: how many side by side; None: as many as there are cores and memory for, and 1 on a GPU.
        highest_peak: bytes of memory that the largest cell took so far; 0 if none has run.
    """
    waiting, workers = list(jobs), list[_Worker]()
    most = processes or default_processes(jobs)
    try:
        while waiting or workers:
            if waiting and _has_room(workers, most, highest_peak, limited=processes is None):
                workers.append(_start(waiting.pop(0)))
                yield Event("started", workers[-1].job)
                continue
            time.sleep(_POLL_SECONDS)
            for worker in list(workers):
                ended = worker.process.poll() is not None
                if _look(worker):
                    highest_peak = max(highest_peak, worker.peak_bytes)
                    yield Event("round", worker.job, worker.round, worker.final)
                if ended:
                    workers.remove(worker)
                    yield _end(worker)
    finally:
        _stop(workers)


def default_processes(jobs: Sequence[Job]) -> int:
    """As many as there are cores; 1 where a cell runs on a GPU, which they would share."""
    if any(job.cell.config.runtime.torch_device() != "cpu" for job in jobs):
        return 1
    return available_cores()


def _has_room(workers: Sequence[_Worker], most: int, highest_peak: int, *, limited: bool) -> bool:
    if not workers:
        return True
    if len(workers) >= most:
        return False
    return not limited or fits(available_bytes(), [worker.peak_bytes for worker in workers], highest_peak)


def _start(job: Job) -> _Worker:
    job.failure.unlink(missing_ok=True)
    command = [*COMMAND, str(job.path), str(job.failure), *for_processes()]
    with job.log.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | _ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is for the comparison, which ends its processes itself
        )
    text = job.cell.config.to_toml().encode()
    # A process that is gone already is found by the next look.
    with contextlib.suppress(BrokenPipeError):
        _input_of(process).write(b"%d\n" % len(text) + text)
        _input_of(process).flush()
    return _Worker(job, process)


def _look(worker: _Worker) -> bool:
    """Reads how far the run is; whether that is news."""
    run = RunDirectory(worker.job.path)
    num_bytes = run.rounds.num_bytes
    if num_bytes == worker.log_bytes or not (rounds := run.read_rounds()):
        return False
    worker.log_bytes, worker.round = num_bytes, rounds[-1]["round"]
    evaluated = [each["measures"] for each in rounds if each["measures"] is not None]
    name = worker.job.cell.config.task.primary.name
    worker.final = evaluated[-1][name] if evaluated else None
    worker.peak_bytes = _peak(run.timings.readable())
    return True


def _peak(timings: Sequence[Record]) -> int:
    return max((each.get("peak_memory_bytes") or 0 for each in timings), default=0)


def _end(worker: _Worker) -> Event:
    """What became of a process that has ended; makes sure that a failure has a reason."""
    job, code = worker.job, worker.process.returncode
    _close(worker.process)
    if job.is_finished:
        return Event("finished", job, worker.round, worker.final)
    if not job.failure.exists():
        log = job.log.read_text(encoding="utf-8", errors="replace")[-2000:].strip()
        job.failure.write_text(f"{_crash(code)}\n\n{log}\n", encoding="utf-8")
    return Event("failed", job, worker.round, worker.final)


def _crash(code: int) -> str:
    if code >= 0:
        return f"Crash: the process ended with exit code {code}."
    name = signal.Signals(-code).name if -code in {each.value for each in signal.Signals} else f"signal {-code}"
    cause = " The system ends processes like that when memory runs out: try fewer `--processes`." if code == -9 else ""
    return f"Crash: the process was ended by {name}.{cause}"


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        _close(worker.process)


def _close(process: subprocess.Popen[bytes]) -> None:
    # Closing writes what could not be written before.
    with contextlib.suppress(BrokenPipeError):
        _input_of(process).close()


def _input_of(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdin is None:
        raise ValueError("the process was started without a pipe")
    return process.stdin
