"""The section "Personalisation" of the report, as HTML; nothing for runs that nobody personalised.

Source: Liu et al. 2022 (Accumulator, arXiv 2212.04084): accuracy over clients that no round asked, before and after.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from fedelta.errors import RunError
from fedelta.results.elements import table
from fedelta.results.files import Record
from fedelta.results.history import History
from fedelta.results.numbers import UNKNOWN, count, percent
from fedelta.results.rundir import PERSONALIZATION

_HEADER = ("Tuned", "Scalars", "Clients", "Before, %", "After, %", "Worst before", "Worst after")
_NOTE = (
    "Clients that no round asked, each on rows of its own that it does not train on: mean ± sample standard deviation "
    "over the clients, each of which counts the same. Before: the model of the server; after: the client's own."
)


def section(run: History, *, titled: bool) -> str:
    """Accuracy over the held-out clients before and after their fine-tuning, for each choice of what is tuned.

    Raises:
        RunError: `personalization.json` does not hold these numbers.
    """
    if not run.personalization:
        return ""
    try:
        rows = [_row(scope, own) for scope, own in run.personalization["scopes"].items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{str(run.path / PERSONALIZATION)!r} does not hold accuracies before and after by scope: {error!r}."
        ) from error
    title = f"Personalisation of {run.name}" if titled else "Personalisation"
    return f'<h2>{escape(title)}</h2>\n{table(_HEADER, rows, numbers_from=1)}\n<p class="note">{_NOTE}</p>'


def _row(scope: str, own: Record) -> list[str]:
    before, after = own["before"], own["after"]
    return [
        scope,
        count(own.get("tuned_parameters")),
        count(len(own["clients"])),
        _mean(before),
        _mean(after),
        percent(before["worst_accuracy"]),
        percent(after["worst_accuracy"]),
    ]


def _mean(over_clients: Mapping[str, float | None]) -> str:
    mean, deviation = over_clients["mean_accuracy"], over_clients["std_accuracy"]
    if mean is None:
        return UNKNOWN
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" \N{PLUS-MINUS SIGN} {100 * deviation:.1f}")
