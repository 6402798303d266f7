"""What an experiment tracker is.

A tracker holds a copy; the record is the run directory's. Whoever opens one hands it every round from the first on,
those of an earlier process too, and the tracker sees to it that none is there twice.

To add a tool, write a file with a class that satisfies `Tracker` and a function that opens it, and add a row to
`TOOLS` in table.py and a name to `Tracking`. The library is imported inside of the function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Parameter = str | int | float | bool


@dataclass(frozen=True)
class TrackedRun:
    """What a tool is told about a run.

    Args:
        name: for people; several runs may share it.
        id: of this run alone, the same after a resume; letters and digits.
        project: under which the tool files it.
        directory: where tools keep their files, each in a place of its own; absolute.
        parameters: key to value, `strategy.num_rounds` to 50.
    """

    name: str
    id: str
    project: str
    directory: Path
    parameters: Mapping[str, Parameter]


class Tracker(Protocol):
    """One run in one tool."""

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of `round`, unless they are there; rounds come in order."""

    def finish(self, summary: Mapping[str, float]) -> None:
        """Adds the key figures and marks the run as finished; nothing follows."""

    def close(self) -> None:
        """Ends an unfinished run, which may be continued; nothing follows."""
