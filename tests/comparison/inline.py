"""Cells in this process: a process of its own for each takes seconds to import what is already here."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from fedelta.comparison.directory import CellRun
from fedelta.comparison.pool import Event
from fedelta.comparison.worker import attempt

RunJobs = Callable[..., Generator[Event]]


def run_inline(jobs: Sequence[CellRun], **options: object) -> Generator[Event]:
    """As `run_jobs`, one after the other."""
    for job in jobs:
        yield from _run(job, lambda job=job: attempt(job.cell.config, job.path, job.failure))


def run_once(finished: Path) -> RunJobs:
    """As `run_inline`, but a configuration that has run before, in any test, is copied from the folder `finished`.

    Equal configurations give equal bits; the tests of `attempt` and of processes hold that.
    """

    def run(jobs: Sequence[CellRun], **options: object) -> Generator[Event]:
        for job in jobs:
            yield from _run(job, lambda job=job: _attempt_once(job, finished))

    return run


def _run(job: CellRun, attempt_it: Callable[[], object]) -> Generator[Event]:
    job.failure.unlink(missing_ok=True)
    yield Event("started", job)
    attempt_it()
    yield Event("finished" if job.is_finished else "failed", job, 1, 0.5)


def _attempt_once(job: CellRun, finished: Path) -> None:
    kept = finished / hashlib.sha256(job.cell.config.to_toml().encode()).hexdigest()
    run, failure = kept / "run", kept / "failure.txt"
    if job.path.exists() or not kept.exists():
        attempt(job.cell.config, job.path, job.failure)
        _copy((job.path, run), (job.failure, failure))
    else:
        _copy((run, job.path), (failure, job.failure))


def _copy(*pairs: tuple[Path, Path]) -> None:
    for source, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, target)
