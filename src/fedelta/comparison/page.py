"""The page of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fedelta.comparison.figures import MAX_NAMES, Mark, measure_by_bytes, measure_by_round
from fedelta.comparison.outcomes import Group, tasks
from fedelta.comparison.result import Comparison, pivot, short
from fedelta.comparison.tables import first_figure, group_table, note, one_line
from fedelta.grid import label_of
from fedelta.record.citations import entries
from fedelta.record.numbers import UNKNOWN, capitalised, in_unit, shown, unit
from fedelta.report.drawing import to_svg
from fedelta.report.strings import figure, fill, legend, table

_FACETS = 12  # plots of one kind on a page


def render(comparison: Comparison) -> str:
    """The page as HTML."""
    table, pivot = _table(comparison), _pivot(comparison)
    # What a paper prints comes first; rows of everything, by which the marks are numbered, can be many.
    parts = [_headline(comparison), pivot or table, _figures(comparison), table if pivot else ""]
    parts += [_failures(comparison), _details(comparison)]
    return fill(f"{comparison.name} · fedelta comparison", [part for part in parts if part])


def _headline(comparison: Comparison) -> str:
    states = [cell.state for cell in comparison.cells]
    axes = ", ".join(comparison.axes) or "the seed alone"
    text = f"{len(comparison.groups)} groups over {axes}; {states.count('finished')} of {len(states)} cells finished"
    open_cells = len(states) - states.count("finished")
    failed = f", {states.count('failed')} failed" if "failed" in states else ""
    mark = f' <span class="unfinished">Unfinished{escape(failed)}.</span>' if open_cells else ""
    return f'<h1>{escape(comparison.name)}</h1>\n<p class="kicker">{escape(text)}.{mark}</p>'


def _table(comparison: Comparison) -> str:
    header, rows = group_table(comparison)
    first = 1 + first_figure(comparison)
    best = {(place, first) for place, group in enumerate(comparison.groups) if group.on_front}
    numbered = [[str(number), *row] for number, row in enumerate(rows, start=1)]
    content = table(["#", *header], numbered, numbers_from=first, strong=best)
    return f'<h2>Results</h2>\n{content}\n<p class="note">{escape(note(comparison))}</p>'


def _pivot(comparison: Comparison) -> str:
    if (found := pivot(comparison)) is None:
        return ""
    content = table(found.header, found.rows, numbers_from=1, strong=found.best)
    in_what = unit(comparison.primary)
    title = _name_of_primary(comparison) + (f" in {in_what}" if in_what else "")
    return f'<h2>{escape(title)}</h2>\n{content}\n<p class="note">Strong: the best of its column.</p>'


def _figures(comparison: Comparison) -> str:
    """The primary measure against traffic, and against rounds where the groups are few; apart for each task."""
    facets = [(title, places, _marks(comparison, places)) for title, places in _facets(comparison)]
    facets = [facet for facet in facets if facet[2]][:_FACETS]
    if not facets:
        return ""
    wide = any(len(places) > MAX_NAMES for _, places, _ in facets)
    names = list(dict.fromkeys(_name(comparison, group) for group in comparison.groups))
    primary, measure = comparison.primary, _name_of_primary(comparison)
    figures = []
    for index, (title, places, marks) in enumerate(facets):
        name = f"{title}: {primary.label}" if title else measure
        drawn = measure_by_bytes(marks, primary, wide=wide)
        svg = to_svg(drawn, f"b{index}", f"{measure} against MiB sent")
        figures.append(figure(svg, f"{name} against traffic"))
        if not wide:
            curves = [(names.index(_name(comparison, group)), group.curve) for group in _at(comparison, places)]
            svg = to_svg(measure_by_round(curves, primary), f"r{index}", f"{measure} against rounds")
            figures.append(figure(svg, f"{name} against rounds"))
    plots = "".join(figures) if wide else f'{legend(names)}<div class="figures">{"".join(figures)}</div>'
    title = f"{measure} against traffic" + ("" if wide else " and rounds")
    return f'<h2>{escape(title)}</h2>\n{plots}\n<p class="note">{escape(_figure_note(comparison, wide))}</p>'


def _name_of_primary(comparison: Comparison) -> str:
    return capitalised(comparison.primary.label)


def _figure_note(comparison: Comparison, wide: bool) -> str:
    parts = ["Filled marks and the dashed line: the Pareto front."]
    if any(group.deviation is not None for group in comparison.groups):
        parts.append("Bars: one standard deviation over the seeds" + ("." if wide else "; curves: their mean."))
    return " ".join([*parts, "Numbers: rows of the table."] if wide else parts)


def _marks(comparison: Comparison, places: Sequence[int]) -> list[Mark]:
    """The groups of one task that were measured; with their names where they are few, else with their numbers."""
    families = list(dict.fromkeys(_family(comparison, group) for group in comparison.groups))
    numbered, primary = len(places) > MAX_NAMES, comparison.primary
    return [
        Mark(
            text=str(place + 1) if numbered else _name(comparison, group),
            family=families.index(_family(comparison, group)),
            family_name=_family(comparison, group),
            total_bytes=group.total_bytes or 0.0,
            height=in_unit(group.mean, primary),
            deviation=None if group.deviation is None else in_unit(group.deviation, primary),
            on_front=group.on_front,
        )
        for place in places
        if (group := comparison.groups[place]).mean is not None
    ]


def _family(comparison: Comparison, group: Group) -> str:
    """The first axis that is not the task's gives colour and shape."""
    name = next((name for name in comparison.axes if name not in comparison.task_axes), None)
    return comparison.name if name is None else short(name, group.labels[name])


def _name(comparison: Comparison, group: Group) -> str:
    """What distinguishes a group from the others of its task."""
    return comparison.group_name(group, without=comparison.task_axes)


def _at(comparison: Comparison, places: Sequence[int]) -> list[Group]:
    return [comparison.groups[place] for place in places]


def _facets(comparison: Comparison) -> list[tuple[str, list[int]]]:
    """Title and places of the groups of each task."""
    found = tasks(comparison.groups, comparison.task_axes)
    return [
        (", ".join(short(*pair) for pair in zip(comparison.task_axes, labels, strict=True)), places)
        for labels, places in found.items()
    ]


def _failures(comparison: Comparison) -> str:
    if not comparison.failures:
        return ""
    rows = [[name, one_line(text)] for name, text in comparison.failures.items()]
    advice = "The same command tries them again; failures/ and logs/ hold the whole texts."
    return f'<h2>Failed</h2>\n{table(["Cell", "Reason"], rows)}\n<p class="note">{advice}</p>'


def _details(comparison: Comparison) -> str:
    """The search, what was asked, and the papers, folded."""
    blocks = [("What was asked", f"<pre>{escape(comparison.asked)}</pre>")]
    if comparison.trials:
        blocks.insert(0, (f"Search of {comparison.searched}", _search(comparison)))
    if cited := _citations(comparison):
        blocks.append(("Citations", f"<pre>{escape(cited)}</pre>"))
    folded = "".join(f"<details><summary>{escape(name)}</summary>{content}</details>" for name, content in blocks)
    return f"<h2>Details</h2>\n{folded}"


def _search(comparison: Comparison) -> str:
    """Every trial; the chosen ones strong."""
    rows = [
        [
            *trial.cell.labels.values(),
            label_of(trial.cell.value),
            trial.cell.state if trial.cell.outcome is None else shown(trial.cell.outcome.final, comparison.primary),
            one_line(trial.cell.failure) or UNKNOWN,
        ]
        for trial in comparison.trials
    ]
    axes = list(comparison.trials[0].cell.labels)
    value = len(axes)
    best = {
        (place, value + column) for place, trial in enumerate(comparison.trials) if trial.is_best for column in (0, 1)
    }
    header = [*axes, str(comparison.searched), f"{comparison.primary.label} on validation rows", "failed"]
    return table(header, rows, numbers_from=value, strong=best)


def _citations(comparison: Comparison) -> str:
    """Those of every finished cell, each once, in the order of papers.bib."""
    texts = {outcome.citations for group in comparison.groups for outcome in group.outcomes}
    return "\n\n".join(entry for entry in entries().values() if any(entry in text for text in texts))
