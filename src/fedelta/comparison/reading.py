"""Reads the figures of finished runs, in the units of the records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedelta.comparison.columns import COSTS, measures, share
from fedelta.errors import RunError
from fedelta.record.history import read_histories
from fedelta.tasks.base import Measure


@dataclass(frozen=True)
class Reading:
    """A finished run.

    Args:
        figures: name of each column to its figure; None if the run lacks it.
        shares: the fractions beside the primary measure that the run has.
        loss: the task's loss in the last evaluated round; infinite if no round was evaluated.
        peak_memory_bytes: highest resident memory.
        curve: round and primary measure of every evaluated round.
        citations: BibTeX.
    """

    figures: Mapping[str, float | None]
    shares: tuple[Measure, ...]
    loss: float
    peak_memory_bytes: int
    curve: tuple[tuple[int, float], ...]
    citations: str


def read_run(path: Path) -> Reading:
    """Reads the directory of a finished run.

    Raises:
        RunError: a file is missing, broken, or does not fit the others.
    """
    run = read_histories([path])[0]
    if run.misfits:
        raise RunError(
            f"files of {str(path)!r} do not fit: {'; '.join(run.misfits)}.",
            hint="bring them back from a copy, or compare in another `--out`.",
        )
    shares = [share(measure) for measure in run.shares]
    return Reading(
        figures={column.name: column.read(run) for column in (*measures(run.primary), *shares, *COSTS)},
        shares=run.shares,
        loss=run.losses[-1][1] if run.losses else math.inf,
        peak_memory_bytes=run.summary["peak_memory_bytes"],
        curve=tuple(run.curve),
        citations=run.citations,
    )
