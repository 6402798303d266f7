"""Cells in this process: a process of its own for each takes seconds to import what is already here."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from fedelta.comparison.directory import Job
from fedelta.comparison.pool import Event
from fedelta.comparison.worker import attempt


def run_inline(jobs: Sequence[Job], *, processes: int | None = None, highest_peak: int = 0) -> Generator[Event]:
    """As `run_jobs`, one after the other."""
    for job in jobs:
        job.failure.unlink(missing_ok=True)
        yield Event("started", job)
        attempt(job.cell.config, job.path, job.failure)
        yield Event("finished" if job.is_finished else "failed", job, 1, 0.5)
