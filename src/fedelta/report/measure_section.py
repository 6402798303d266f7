"""The section "Finished model" of the report, as HTML: all measures, classes, clients, and what is taken for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from fedelta.record.details import NUM_EXAMPLES
from fedelta.record.history import History
from fedelta.record.numbers import UNKNOWN, bare, capitalised, count, headed, percent, three_digits
from fedelta.report.confusion import MAX_NUMBERS, matrix, mistakes
from fedelta.report.drawing import to_svg
from fedelta.report.elements import figure, table
from fedelta.tasks.base import Measure
from fedelta.tasks.details import Confusion, Details, Values

_MAX_ROWS = 10  # of a long table that are not folded away
_SHARES = "Of the examples of each true class, in percent."


def section(runs: Sequence[History]) -> str:
    """What runs tell of their finished models; nothing where none does."""
    told = {index: run.details for index, run in enumerate(runs) if run.details is not None}
    if not told:
        return ""
    parts = ["<h2>Finished model</h2>", _overall(runs, told)]
    for index, details in told.items():
        content = _parts(runs[index], details, f"m{index}")
        if content and len(runs) > 1:
            title = escape(f"Classes and clients of {runs[index].name}" if details.by_class else runs[index].name)
            content = f"<details><summary>{title}</summary>{content}</details>"
        parts.append(content)
    return "\n".join(part for part in parts if part)


def _overall(runs: Sequence[History], told: Mapping[int, Details]) -> str:
    """A row for each run, a column for each measure."""
    names = list(dict.fromkeys(name for details in told.values() for name in details.measures))
    alone = len(runs) == 1
    rows = [
        [
            capitalised(f"{runs[index].measured_on} set") if alone else runs[index].name,
            *(_text(name, details.measures.get(name), runs[index]) for name in names),
        ]
        for index, details in told.items()
    ]
    return table(["" if alone else "Run", *(_title(name, runs[0]) for name in names)], rows, numbers_from=1)


def _parts(run: History, details: Details, prefix: str) -> str:
    """The matrix beside the classes or, where they are many, beside its largest numbers; and the clients below."""
    beside, parts = _confusion(details.confusion, prefix), list[str]()
    if details.by_class:
        classes = figure(_of_parts("Class", details.by_class, run), "Classes, worst first")
        (beside if len(beside) < 2 else parts).append(classes)
    if beside:
        parts.insert(0, f'<div class="figures">{"".join(beside)}</div>')
    if details.by_client:
        clients = {run.client_label(client): values for client, values in details.by_client.items()}
        note = f"Each on its own rows of the {run.measured_on} set."
        parts.append(figure(_of_parts("Client", clients, run), "Clients, worst first", note))
    return "\n".join(parts)


def _confusion(confusion: Confusion | None, prefix: str) -> list[str]:
    if confusion is None:
        return []
    has_numbers = len(confusion.class_names) <= MAX_NUMBERS
    svg = to_svg(matrix(confusion), prefix, "Share of each answer among the examples of each true class")
    figures = [figure(svg, "Answers by true class", _SHARES if has_numbers else "")]
    if not has_numbers and (found := mistakes(confusion, _MAX_ROWS)):
        rows = [[true, answer, count(number), percent(share)] for true, answer, number, share in found]
        shown = table(["True class", "Taken for", "Examples", "Share of the class"], rows, numbers_from=2)
        figures.append(figure(shown, "Most frequent mistakes"))
    return figures


def _of_parts(kind: str, parts: Mapping[str, Values], run: History) -> str:
    """A row for each class or client, the worst first; most of them folded where they are many."""
    names = list(dict.fromkeys(name for values in parts.values() for name in values))
    names.sort(key=lambda name: name == NUM_EXAMPLES)  # last
    decisive = _decisive(names, run)
    ordered = sorted(parts.items(), key=lambda part: _rank(part[1], decisive))
    rows = [[label, *(_text(name, values.get(name), run) for name in names)] for label, values in ordered]
    header = [kind, *(_title(name, run) for name in names)]
    if len(rows) <= _MAX_ROWS + 2:
        return table(header, rows, numbers_from=1)
    rest = f"<details><summary>{len(rows) - _MAX_ROWS} more</summary>{table(header, rows[_MAX_ROWS:], numbers_from=1)}"
    return f"{table(header, rows[:_MAX_ROWS], numbers_from=1)}{rest}</details>"


def _decisive(names: Sequence[str], run: History) -> Measure | None:
    """What the order goes by: the primary measure where parts have it, else the last of theirs."""
    known = [run.task.measured[name] for name in names if name in run.task.measured]
    return run.primary if run.primary in known else known[-1] if known else None


def _rank(values: Values, measure: Measure | None) -> tuple[bool, float]:
    """Ascending from the worst; what has no value comes last."""
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
