"""The section "Details": configuration, environment and citations of a run."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import ClassVar

import tomli_w

from fedelta.record.files import flatten
from fedelta.record.history import History
from fedelta.record.rundir import SKIPPED
from fedelta.record.runlog import NUM_SKIPPED
from fedelta.report.elements import Table

_MOST = 100  # rows of the table; the file has all


@dataclass(frozen=True)
class DetailSection:
    """The content of details.html.

    Args:
        title: of the section.
        configuration: TOML.
        environment: one row per value.
        citations: BibTeX.
        skipped: examples that were left out; None if there are none.
    """

    template: ClassVar[str] = "details.html"
    title: str
    configuration: str
    environment: Table
    citations: str
    skipped: Table | None = None


def details(run: History, *, titled: bool) -> DetailSection:
    """The section for `run`: configuration, environment and citations."""
    environment = Table(["What", "Value"], list(flatten(run.environment)))
    title = run.name if titled else "Details"
    return DetailSection(title, tomli_w.dumps(run.config), environment, run.citations, _skipped(run))


def _skipped(run: History) -> Table | None:
    """The examples that were left out, as far as they are listed here; None if there are none."""
    path = run.path / SKIPPED
    header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8"))) if path.is_file() else [[""]]
    num = int(run.summary.get(NUM_SKIPPED, len(rows)))
    if not num:
        return None
    more = "" if num <= min(len(rows), _MOST) else f"; {min(len(rows), _MOST)} of them are shown"
    return Table(header, rows[:_MOST], note=f"{num:,} examples could not be read and were left out{more}.")
