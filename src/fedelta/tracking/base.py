"""The protocol of experiment trackers.

A tracker holds a copy of the records in the run directory. It is given every round from the first on, including rounds
of an earlier process, and makes sure that none is stored twice.

To add a tool, write a file with a class that satisfies `Tracker` and a function that opens it, and add a row to `TOOLS`
in table.py and a name to `Tracking`. The library is imported inside the function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Parameter = str | int | float | bool


@dataclass(frozen=True)
class TrackedRun:
    """The description of a run for a tool.

    Args:
        name: for display; several runs may share it.
        id: unique, and the same after a resume; letters and digits.
        project: name of the group of runs in the tool.
        directory: absolute; each tool keeps its files in a sub-folder.
        parameters: key to value, such as `strategy.num_rounds` to 50.
    """

    name: str
    id: str
    project: str
    directory: Path
    parameters: Mapping[str, Parameter]


class Tracker(Protocol):
    """One run in one tool."""

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """Adds the values of `round` if they are not stored yet; rounds come in order."""

    def finish(self, summary: Mapping[str, float]) -> None:
        """Adds the summary and marks the run as finished; the last call."""

    def close(self) -> None:
        """Ends an unfinished run, which may be continued later; the last call."""
