"""The section "Personalisation" of the report, as HTML; nothing for runs that nobody personalised.

Source: Liu et al. 2022 (Accumulator, arXiv 2212.04084): a mean over clients that no round asked, before and after.
"""

from __future__ import annotations

from html import escape

from fedelta.errors import RunError
from fedelta.record.files import Record
from fedelta.record.history import History
from fedelta.record.numbers import bare, count, headed, shown
from fedelta.record.rundir import PERSONALIZATION
from fedelta.report.elements import table
from fedelta.tasks.base import Measure

_NOTE = (
    "Clients that no round asked, each on rows of its own that it does not train on: mean ± sample standard deviation "
    "over the clients, each of which counts the same. Before: the model of the server; after: the client's own."
)


def section(run: History, *, titled: bool) -> str:
    """The primary measure over the held-out clients before and after their fine-tuning, for each scope of tuning.

    Raises:
        RunError: `personalization.json` does not hold these numbers.
    """
    if not run.personalization:
        return ""
    try:
        rows = [_row(scope, own, run.primary) for scope, own in run.personalization["scopes"].items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        wanted = f"`{run.primary.name}` before and after by scope"
        raise RunError(f"{str(run.path / PERSONALIZATION)!r} does not hold {wanted}: {error!r}.") from error
    title = f"Personalisation of {run.name}" if titled else "Personalisation"
    before, after = headed("Before", run.primary), headed("After", run.primary)
    header = ("Tuned", "Scalars", "Clients", before, after, "Worst before", "Worst after")
    return f'<h2>{escape(title)}</h2>\n{table(header, rows, numbers_from=1)}\n<p class="note">{_NOTE}</p>'


def worst_client(part: Record) -> str:
    """The client that comes off worst before or after fine-tuning: "client 3", or by name "george (3)"."""
    number, name = part["worst_client_id"], part.get("worst_client_name")
    return f"client {number}" if name is None else f"{name} ({number})"


def _row(scope: str, own: Record, measure: Measure) -> list[str]:
    mean, std, worst = (f"{kind}_{measure.name}" for kind in ("mean", "std", "worst"))
    parts = own["before"], own["after"]
    return [
        scope,
        count(own.get("tuned_parameters")),
        count(len(own["clients"])),
        *(bare(part[mean], measure, part[std]) for part in parts),
        *(f"{shown(part[worst], measure)}, {worst_client(part)}" for part in parts),
    ]
