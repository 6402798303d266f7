"""The section "Files that do not fit": inconsistencies in the run directories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.record.history import History
from fedelta.report.elements import Table


@dataclass(frozen=True)
class Misfits:
    """The content of misfits.html: one row per inconsistency."""

    template: ClassVar[str] = "misfits.html"
    problems: Table


def misfits(runs: Sequence[History]) -> Misfits | None:
    """The section on inconsistencies in the directories of `runs`; None if there are none."""
    rows = [[run.name, problem] for run in runs for problem in run.misfits]
    if not rows:
        return None
    header, first = ["Run", "What does not fit"], 0 if len(runs) > 1 else 1
    return Misfits(Table(header[first:], [row[first:] for row in rows]))
