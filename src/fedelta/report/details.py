"""The section "Details": configuration, environment and citations of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import tomli_w

from fedelta.record.files import flatten
from fedelta.record.history import History
from fedelta.report.elements import Table


@dataclass(frozen=True)
class Details:
    """What details.html shows.

    Args:
        title: of the section.
        is_open: its parts are unfolded.
        configuration: TOML.
        environment: a row for each fact.
        citations: BibTeX.
    """

    template: ClassVar[str] = "details.html"
    title: str
    is_open: bool
    configuration: str
    environment: Table
    citations: str


def details(run: History, *, titled: bool) -> Details:
    """Configuration, environment and citations of `run`, folded where the heading names it among others."""
    environment = Table(["What", "Value"], list(flatten(run.environment)))
    title = run.name if titled else "Details"
    return Details(title, not titled, tomli_w.dumps(run.config), environment, run.citations)
