"""The section "Personalisation": held-out clients before and after fine-tuning the finished model.

Source: Liu et al. 2022 (Accumulator, arXiv 2212.04084), means over held-out clients before and after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedelta.errors import RunError
from fedelta.record.files import Record
from fedelta.record.history import History
from fedelta.record.numbers import bare, count, headed, shown
from fedelta.record.rundir import PERSONALIZATION
from fedelta.report.elements import Table
from fedelta.tasks.base import Measure


@dataclass(frozen=True)
class PersonalSection:
    """The content of personal_section.html: one row per scope of tuning."""

    template: ClassVar[str] = "personal_section.html"
    title: str
    scopes: Table


def section(run: History, *, titled: bool) -> PersonalSection | None:
    """The section for runs after `fedelta personalize`; None if it was not run.

    Raises:
        RunError: `personalization.json` lacks these numbers.
    """
    if not run.personalization:
        return None
    try:
        rows = [_row(name, scope, run.primary) for name, scope in run.personalization["scopes"].items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        expected = f"`{run.primary.name}` before and after by scope"
        raise RunError(f"{str(run.path / PERSONALIZATION)!r} does not hold {expected}: {error!r}.") from error
    before, after = headed("Before", run.primary), headed("After", run.primary)
    header = ("Tuned", "Scalars", "Clients", before, after, "Worst before", "Worst after")
    title = f"Personalisation of {run.name}" if titled else "Personalisation"
    return PersonalSection(title, Table(header, rows, numbers_from=1))


def worst_client(part: Record) -> str:
    """The client with the worst value before or after fine-tuning: "client 3", or by name "george (3)"."""
    number, name = part["worst_client_id"], part.get("worst_client_name")
    return f"client {number}" if name is None else f"{name} ({number})"


def _row(name: str, scope: Record, measure: Measure) -> list[str]:
    mean, std, worst = (f"{kind}_{measure.name}" for kind in ("mean", "std", "worst"))
    parts = scope["before"], scope["after"]
    return [
        name,
        count(scope.get("tuned_parameters")),
        count(len(scope["clients"])),
        *(bare(part[mean], measure, part[std]) for part in parts),
        *(f"{shown(part[worst], measure)}, {worst_client(part)}" for part in parts),
    ]
