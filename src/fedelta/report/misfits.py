"""The section "Files that do not fit": what the audit of the run directories found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.record.history import History
from fedelta.report.elements import Table


@dataclass(frozen=True)
class Misfits:
    """What misfits.html shows: a row for each thing that does not fit."""

    template: ClassVar[str] = "misfits.html"
    problems: Table


def misfits(runs: Sequence[History]) -> Misfits | None:
    """What does not fit in the directories of `runs`; None where all does."""
    rows = [[run.name, problem] for run in runs for problem in run.misfits]
    if not rows:
        return None
    header, first = ["Run", "What does not fit"], 0 if len(runs) > 1 else 1
    return Misfits(Table(header[first:], [row[first:] for row in rows]))
