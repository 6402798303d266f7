"""Runs cells in processes: as many at a time as fit, each with one arithmetic thread.

With one thread, sums of floats have a fixed order, so results have the same bits for any number of processes. Results
are written by the processes; if the caller closes the iterator, they end.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from fedelta.comparison.claims import Claims
from fedelta.comparison.directory import CellRun
from fedelta.comparison.launchers import Poll, has_one_gpu, launcher_for
from fedelta.comparison.memory import fits
from fedelta.machine import available_bytes, available_cores
from fedelta.record.files import Record
from fedelta.record.rundir import RunDirectory
from fedelta.runtimes.settings import gpus

_POLL_SECONDS = 0.1
_LOOK_SECONDS = 1.0  # between looks at what other processes have claimed


@dataclass(frozen=True)
class Event:
    """A change in the state of a cell.

    Args:
        kind: `round` means that one or more rounds have finished.
        job: the cell.
        round: the last finished round; 0 before the first.
        final: the primary measure in the last evaluated round; None before the first.
    """

    kind: Literal["started", "round", "finished", "failed"]
    job: CellRun
    round: int = 0
    final: float | None = None


@dataclass
class _Worker:
    """A process and the progress of its run; updated by `_look`."""

    job: CellRun
    poll: Poll
    log_bytes: int = -1
    round: int = 0
    final: float | None = None
    peak_bytes: int = 0


def run_jobs(
    jobs: Sequence[CellRun],
    *,
    claims: Claims,
    waits: bool = True,
    processes: int | None = None,
    highest_peak: int = 0,
) -> Generator[Event]:
    """Starts jobs in order and yields events, of their ends elsewhere too. Closing the iterator ends the processes.

    Args:
        jobs: the unfinished ones.
        claims: which jobs others run; those are left to them.
        waits: whether to wait for the jobs that others still run at the end.
        processes: number of processes at a time; None: as many as cores and memory allow, or one on each GPU.
        highest_peak: memory in bytes of the largest cell so far; 0 if none has run.
    """
    waiting, workers, next_look = list(jobs), list[_Worker](), 0.0
    most, launcher = processes or default_processes(jobs), launcher_for(jobs)
    try:
        while waiting or workers:
            room = _has_room(workers, most, highest_peak, limited=processes is None)
            if waiting and room and time.monotonic() >= next_look:
                ended, unclaimed = claims.sort(waiting)
                for other in ended:
                    waiting.remove(other)
                    yield _end_elsewhere(other)
                if (job := next(filter(claims.take, unclaimed), None)) is not None:
                    waiting.remove(job)
                    job.failure.unlink(missing_ok=True)
                    workers.append(_Worker(job, launcher.start(job)))
                    yield Event("started", job)
                    continue
                if not (unclaimed or workers or waits):
                    return
                next_look = time.monotonic() + _LOOK_SECONDS
            time.sleep(_POLL_SECONDS)
            for worker in list(workers):
                code = worker.poll()
                if _look(worker):
                    highest_peak = max(highest_peak, worker.peak_bytes)
                    yield Event("round", worker.job, worker.round, worker.final)
                if code is not None:
                    workers.remove(worker)
                    event, next_look = _end(worker, code), 0.0
                    claims.release(worker.job)
                    yield event
    finally:
        launcher.stop()


def default_processes(jobs: Sequence[CellRun]) -> int:
    """The number of cores or, if cells run on GPUs, of GPUs, of which each cell gets one; 1 if a cell takes all."""
    on_gpu = [job for job in jobs if job.cell.config.runtime.torch_device() != "cpu"]
    if not on_gpu:
        return available_cores()
    return len(gpus()) if all(map(has_one_gpu, on_gpu)) else 1


def _has_room(workers: Sequence[_Worker], most: int, highest_peak: int, *, limited: bool) -> bool:
    if not workers:
        return True
    if len(workers) >= most:
        return False
    return not limited or fits(available_bytes(), [worker.peak_bytes for worker in workers], highest_peak)


def _end_elsewhere(job: CellRun) -> Event:
    worker = _Worker(job, lambda: 0)
    _look(worker)
    return Event("finished" if job.is_finished else "failed", job, worker.round, worker.final)


def _look(worker: _Worker) -> bool:
    """Updates `worker` from the records of its run; returns whether there are new ones."""
    run = RunDirectory(worker.job.path)
    num_bytes = run.rounds.num_bytes
    if num_bytes == worker.log_bytes or not (rounds := run.read_rounds()):
        return False
    worker.log_bytes, worker.round = num_bytes, rounds[-1]["round"]
    evaluated = [record["measures"] for record in rounds if record["measures"] is not None]
    name = worker.job.cell.config.task.primary.name
    worker.final = evaluated[-1][name] if evaluated else None
    worker.peak_bytes = _peak(run.timings.readable())
    return True


def _peak(timings: Sequence[Record]) -> int:
    return max((record.get("peak_memory_bytes") or 0 for record in timings), default=0)


def _end(worker: _Worker, code: int) -> Event:
    """The event for a process that has ended; writes a reason if it failed without giving one."""
    job = worker.job
    if job.is_finished:
        return Event("finished", job, worker.round, worker.final)
    if not job.failure.exists():
        log = job.log.read_text(encoding="utf-8", errors="replace")[-2000:].strip()
        job.failure.write_text(f"{_crash(code)}\n\n{log}\n", encoding="utf-8")
    return Event("failed", job, worker.round, worker.final)


def _crash(code: int) -> str:
    if code >= 0:
        return f"Crash: the process ended with exit code {code}."
    name = signal.Signals(-code).name if -code in {known.value for known in signal.Signals} else f"signal {-code}"
    cause = " The system ends processes like that when memory runs out: try fewer `--processes`." if code == -9 else ""
    return f"Crash: the process was ended by {name}.{cause}"
