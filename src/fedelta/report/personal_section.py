"""The section "Personalisation": held-out clients before and after fine-tuning the finished model.

Source: Liu et al. 2022 (Accumulator, arXiv 2212.04084), means over held-out clients before and after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedelta.errors import RunError
from fedelta.record.files import Record
from fedelta.record.history import History
from fedelta.record.numbers import bare, count, headed, shown
from fedelta.record.rundir import PERSONALIZATION
from fedelta.report.elements import LongTable, Table, long_table
from fedelta.tasks.base import Measure


@dataclass(frozen=True)
class PersonalSection:
    """The content of personal_section.html.

    Args:
        title: of the section.
        scopes: one row per scope of tuning.
        clients: one row per held-out client, the worst before fine-tuning first.
    """

    template: ClassVar[str] = "personal_section.html"
    title: str
    scopes: Table
    clients: LongTable


def section(run: History, *, titled: bool) -> PersonalSection | None:
    """The section for runs after `fedelta personalize`; None if it was not run.

    Raises:
        RunError: `personalization.json` lacks these numbers.
    """
    if not run.personalization:
        return None
    try:
        scopes = run.personalization["scopes"]
        rows = [_row(name, scope, run.primary) for name, scope in scopes.items()]
        clients = _clients(scopes, run.primary)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        expected = f"`{run.primary.name}` before and after by scope"
        raise RunError(f"{str(run.path / PERSONALIZATION)!r} does not hold {expected}: {error!r}.") from error
    before, after = headed("Before", run.primary), headed("After", run.primary)
    header = ("Tuned", "Scalars", "Clients", before, after, "Worst before", "Worst after")
    title = f"Personalisation of {run.name}" if titled else "Personalisation"
    return PersonalSection(title, Table(header, rows, numbers_from=1), long_table(clients))


def worst_client(part: Record) -> str:
    """The client with the worst value before or after fine-tuning: "client 3", or by name "george (3)"."""
    number, name = part["worst_client_id"], part.get("worst_client_name")
    return f"client {number}" if name is None else f"{name} ({number})"


def _clients(scopes: Mapping[str, Record], measure: Measure) -> Table:
    """Each client's measure before fine-tuning, and after it in each scope."""
    by_scope = [{entry["client_id"]: entry for entry in scope["clients"]} for scope in scopes.values()]
    entries = {client: entry for of_scope in by_scope for client, entry in of_scope.items()}
    before, after = f"{measure.name}_before", f"{measure.name}_after"
    sign = 1 if measure.higher_is_better else -1
    rows = [
        [
            _label(entries[client]),
            count(entries[client]["num_train"]),
            count(entries[client]["num_eval"]),
            bare(entries[client][before], measure),
            *(bare(of_scope.get(client, {}).get(after), measure) for of_scope in by_scope),
        ]
        for client in sorted(entries, key=lambda client: (sign * entries[client][before], client))
    ]
    header = ["Client", "Training examples", "Measured examples", headed("Before", measure)]
    header += [headed(f"After tuning {name}", measure) for name in scopes]
    return Table(header, rows, numbers_from=1, title="Held-out clients, worst first")


def _label(entry: Record) -> str:
    """The number of a client and its name, if it has one."""
    number, name = entry["client_id"], entry.get("client_name")
    return str(number) if name is None else f"{name} ({number})"


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
