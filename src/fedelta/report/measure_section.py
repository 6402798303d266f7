"""The section "Finished model": measures overall, by class and by client, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fedelta.record.details import NUM_EXAMPLES
from fedelta.record.history import History
from fedelta.record.numbers import UNKNOWN, bare, capitalised, count, headed, percent, three_digits
from fedelta.report.confusion import MAX_NUMBERS, matrix, mistakes
from fedelta.report.elements import LongTable, Picture, Table, long_table, picture
from fedelta.tasks.base import Measure
from fedelta.tasks.details import Confusion, Details, Values

_MAX_MISTAKES = 10
_SHARES = "Of the examples of each true class, in percent."


@dataclass(frozen=True)
class PartTables:
    """Classes and clients of a finished model.

    Args:
        title: of the fold that contains them; empty if they are not folded.
        matrix: share of each answer among the examples of each true class.
        mistakes: the most frequent ones, if the matrix has no numbers.
        classes: the worst first.
        clients: the worst first.
    """

    title: str
    matrix: Picture | None
    mistakes: Table | None
    classes: LongTable | None
    clients: LongTable | None


@dataclass(frozen=True)
class MeasureSection:
    """The content of measure_section.html: one row of measures per run, and the parts of runs that have them."""

    template: ClassVar[str] = "measure_section.html"
    measures: Table
    parts: Sequence[PartTables]


def section(runs: Sequence[History]) -> MeasureSection | None:
    """The section for those of `runs` that are finished; None if none is."""
    details_of = {index: run.details for index, run in enumerate(runs) if run.details is not None}
    if not details_of:
        return None
    parts = [
        _parts(runs[index], details, f"m{index}", folded=len(runs) > 1)
        for index, details in details_of.items()
        if details.confusion is not None or details.by_class or details.by_client
    ]
    return MeasureSection(_overall(runs, details_of), parts)


def _overall(runs: Sequence[History], details_of: Mapping[int, Details]) -> Table:
    """A table with one row per run and one column per measure."""
    names = list(dict.fromkeys(name for details in details_of.values() for name in details.measures))
    is_alone = len(runs) == 1
    rows = [
        [
            capitalised(f"{runs[index].measured_on} set") if is_alone else runs[index].name,
            *(_text(name, details.measures.get(name), runs[index]) for name in names),
        ]
        for index, details in details_of.items()
    ]
    return Table(["" if is_alone else "Run", *(_title(name, runs[0]) for name in names)], rows, numbers_from=1)


def _parts(run: History, details: Details, prefix: str, *, folded: bool) -> PartTables:
    singular, plural = map(capitalised, run.task.output)
    title = f"{plural} and clients of {run.name}" if details.by_class else run.name
    clients = {run.client_label(client): values for client, values in details.by_client.items()}
    note = f"Each on its own rows of the {run.measured_on} set."
    return PartTables(
        title=title if folded else "",
        matrix=None if details.confusion is None else _matrix(details.confusion, prefix),
        mistakes=None if details.confusion is None else _mistakes(details.confusion),
        classes=_worst_first(singular, details.by_class, run, Table([], [], title=f"{plural}, worst first")),
        clients=_worst_first("Client", clients, run, Table([], [], title="Clients, worst first", note=note)),
    )


def _matrix(confusion: Confusion, prefix: str) -> Picture:
    says = "Share of each answer among the examples of each true class"
    notes = [_SHARES] if _has_numbers(confusion) else []
    if confusion.num_models > 1:
        notes.append(f"Each of {confusion.num_models} models of clients answered all examples; counts are their sums.")
    note = " ".join(notes)
    return picture(matrix(confusion), prefix, "Answers by true class", says=says, note=note)


def _mistakes(confusion: Confusion) -> Table | None:
    """A table of the most frequent mistakes, for a matrix that is too large for numbers."""
    largest = [] if _has_numbers(confusion) else mistakes(confusion, _MAX_MISTAKES)
    rows = [[true, answer, count(number), percent(share)] for true, answer, number, share in largest]
    header = ["True class", "Taken for", "Examples", "Share of the class"]
    return Table(header, rows, numbers_from=2, title="Most frequent mistakes") if rows else None


def _has_numbers(confusion: Confusion) -> bool:
    return len(confusion.class_names) <= MAX_NUMBERS


def _worst_first(kind: str, parts: Mapping[str, Values], run: History, empty: Table) -> LongTable | None:
    """A table with one row per class or client, the worst first; a long table is folded."""
    if not parts:
        return None
    names = list(dict.fromkeys(name for values in parts.values() for name in values))
    names.sort(key=lambda name: name == NUM_EXAMPLES)  # last
    decisive = _decisive(names, run)
    ordered = sorted(parts.items(), key=lambda part: _rank(part[1], decisive))
    rows = [[label, *(_text(name, values.get(name), run) for name in names)] for label, values in ordered]
    header = [kind, *(_title(name, run) for name in names)]
    return long_table(replace(empty, header=header, rows=rows, numbers_from=1))


def _decisive(names: Sequence[str], run: History) -> Measure | None:
    """The measure that determines the order: the primary one if the parts have it, else their last one."""
    known = [run.task.measured[name] for name in names if name in run.task.measured]
    return run.primary if run.primary in known else known[-1] if known else None


def _rank(values: Values, measure: Measure | None) -> tuple[bool, float]:
    """Sort key from the worst value to the best; missing values come last."""
    value = None if measure is None else values.get(measure.name)
    if measure is None or value is None:
        return True, 0.0
    return False, value if measure.higher_is_better else -value


def _title(name: str, run: History) -> str:
    if name == NUM_EXAMPLES:
        return "Examples"
    measure = run.task.measured.get(name)
    return capitalised(name.replace("_", " ") if measure is None else headed(measure.label, measure))


def _text(name: str, value: float | None, run: History) -> str:
    measure = run.task.measured.get(name)
    if measure is not None:
        return bare(value, measure)
    if value is None:
        return UNKNOWN
    return count(int(value)) if name.startswith("num_") else three_digits(value)
