"""The section "Details": configuration, environment and citations of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import tomli_w

from fedelta.record.files import flatten
from fedelta.record.history import History
from fedelta.report.elements import Table


@dataclass(frozen=True)
class DetailSection:
    """The content of details.html.

    Args:
        title: of the section.
        is_open: whether its parts are unfolded.
        configuration: TOML.
        environment: one row per value.
        citations: BibTeX.
    """

    template: ClassVar[str] = "details.html"
    title: str
    is_open: bool
    configuration: str
    environment: Table
    citations: str


def details(run: History, *, titled: bool) -> DetailSection:
    """The section for `run`: configuration, environment and citations; folded if the page has several runs."""
    environment = Table(["What", "Value"], list(flatten(run.environment)))
    title = run.name if titled else "Details"
    return DetailSection(title, not titled, tomli_w.dumps(run.config), environment, run.citations)
