"""The page of a comparison: one HTML file that needs nothing else.

This module decides what is shown, templates/comparison.html how it looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedelta.comparison.columns import EPSILON, IS_BEST, IS_CLEAR, ON_FRONT, REASON, STATE, TOTAL_BYTES
from fedelta.comparison.figures import MAX_NAMES, Mark, measure_by_bytes, measure_by_epsilon, measure_by_round
from fedelta.comparison.frames import FAILED, FINISHED, mean_curve, one_line, split
from fedelta.comparison.result import Comparison, Record, pivot, records, short
from fedelta.comparison.tables import BEST_IN_WORDS, group_table, note, primary_in_words
from fedelta.grid import label_of
from fedelta.record.citations import entries
from fedelta.record.numbers import UNKNOWN, capitalised, in_unit, shown
from fedelta.report.charts import Curve
from fedelta.report.drawing import style_of
from fedelta.report.elements import Line, Picture, Table, legend, picture
from fedelta.report.rendering import render as render_template

_FACETS = 12  # maximum number of plots of one kind


@dataclass(frozen=True)
class Plots:
    """The primary measure against traffic and, for few groups, against rounds.

    Args:
        title: above them.
        lines: how the plots draw the groups; empty if the groups are numbered.
        pictures: side by side, or below each other without `lines`.
        note: below them.
    """

    title: str
    lines: Sequence[Line]
    pictures: Sequence[Picture]
    note: str


@dataclass(frozen=True)
class Page:
    """The content of the page.

    Args:
        name: of the comparison.
        progress: number of groups, and of finished cells.
        unfinished: a note while cells wait or have failed; else empty.
        pivot: the primary measure by axes; None with fewer than two.
        groups: all figures of all groups.
        plots: None before the first result.
        failures: None if no cell failed.
        search: the trials; None without a search.
        asked: the content of `compare.toml`.
        citations: BibTeX.
    """

    name: str
    progress: str
    unfinished: str
    pivot: Table | None
    groups: Table
    plots: Plots | None
    failures: Table | None
    search: Table | None
    asked: str
    citations: str


def render(comparison: Comparison) -> str:
    """The page as HTML."""
    states = comparison.frame[STATE].tolist()
    num_finished, num_failed = states.count(FINISHED), states.count(FAILED)
    axes = ", ".join(comparison.axes) or "the seed alone"
    failed = f", {num_failed} failed" if num_failed else ""
    page = Page(
        name=comparison.name,
        progress=f"{len(comparison.groups)} groups over {axes}; {num_finished} of {len(states)} cells finished",
        unfinished=f"Unfinished{failed}." if num_finished < len(states) else "",
        pivot=_pivot(comparison),
        groups=_groups(comparison),
        plots=_plots(comparison),
        failures=_failures(comparison),
        search=_search(comparison),
        asked=comparison.asked,
        citations=_citations(comparison),
    )
    values = {"title": f"{comparison.name} · fedelta comparison", "page": page}
    return render_template("comparison.html", values, package="fedelta.comparison")


def _groups(comparison: Comparison) -> Table:
    """The groups, numbered as in the plots; that they are on the front is strong if it is no chance."""
    groups = group_table(comparison)
    last = len(groups.header)
    return Table(
        header=["#", *groups.header[: groups.num_labels], *map(capitalised, groups.header[groups.num_labels :])],
        rows=[[str(number), *row] for number, row in enumerate(groups.rows, start=1)],
        numbers_from=1 + groups.num_labels,
        strong={(place, last) for place, is_clear in enumerate(comparison.groups[IS_CLEAR]) if is_clear},
        title="Results",
        note=note(comparison),
    )


def _pivot(comparison: Comparison) -> Table | None:
    if (table := pivot(comparison)) is None:
        return None
    down, *across = comparison.axes
    title = f"{primary_in_words(comparison)}, by {down} and {', '.join(across)}"
    below = f"Strong: {BEST_IN_WORDS}."
    return Table(table.header, table.rows, numbers_from=1, strong=table.best, title=title, note=below)


def _plots(comparison: Comparison) -> Plots | None:
    """Plots for each task."""
    groups = records(comparison.groups)
    names = list(dict.fromkeys(_name(comparison, group) for group in groups))
    facets = [(title, places, _marks(comparison, groups, places, names)) for title, places in _facets(comparison)]
    facets = [facet for facet in facets if facet[2]][:_FACETS]
    if not facets:
        return None
    wide = any(len(places) > MAX_NAMES for _, places, _ in facets)
    primary, measure = comparison.primary, capitalised(comparison.primary.label)
    pictures = []
    for index, (title, places, marks) in enumerate(facets):
        name = f"{title}: {primary.label}" if title else measure
        drawn, says = measure_by_bytes(marks, primary, wide=wide), f"{measure} against MiB sent"
        pictures.append(picture(drawn, f"b{index}", f"{name} against traffic", says=says))
        if not wide:
            members = [groups[place] for place in places]
            lines = [_curve(comparison, group, names.index(_name(comparison, group))) for group in members]
            drawn, says = (
                measure_by_round([line for line in lines if line.points], primary),
                f"{measure} against rounds",
            )
            pictures.append(picture(drawn, f"r{index}", f"{name} against rounds", says=says))
        if any(mark.epsilon is not None for mark in marks):
            drawn, says = measure_by_epsilon(marks, primary, wide=wide), f"{measure} against epsilon"
            pictures.append(picture(drawn, f"e{index}", f"{name} against epsilon", says=says))
    title = f"{measure} against traffic" + ("" if wide else " and rounds")
    drawn_names = {names.index(mark.name) for _, _, marks in facets for mark in marks}
    return Plots(title, [] if wide else legend(names, drawn_names), pictures, _plots_note(comparison, wide=wide))


def _plots_note(comparison: Comparison, *, wide: bool) -> str:
    parts = ["Filled marks and the dashed line: the Pareto front."]
    if comparison.groups[comparison.measures[0].in_groups[1]].notna().any():
        bars = "Bars" if wide else "Bars and bands"
        parts.append(f"{bars}: one standard deviation over the seeds{'' if wide else '; curves: their mean'}.")
    return " ".join([*parts, "Numbers: rows of the table."])


def _curve(comparison: Comparison, group: Record, index: int) -> Curve:
    labels = {name: group[name] for name in comparison.axes}
    cells = comparison.frame
    for name, label in labels.items():
        cells = cells[cells[name] == label]
    points = mean_curve(comparison.curves, labels, num_cells=int((cells[STATE] == FINISHED).sum()))
    primary = comparison.primary
    return Curve(
        _name(comparison, group),
        index,
        [(round, in_unit(mean, primary)) for round, mean, _ in points],
        deviations=[None if deviation is None else in_unit(deviation, primary) for _, _, deviation in points],
    )


def _marks(comparison: Comparison, groups: Sequence[Record], places: Sequence[int], names: Sequence[str]) -> list[Mark]:
    """Marks for the measured groups of one task; in the colours of the legend if they are few, else of families."""
    families = list(dict.fromkeys(_family(comparison, group) for group in groups))
    primary = comparison.primary
    mean, deviation = comparison.measures[0].in_groups
    return [
        Mark(
            number=place + 1,
            name=_name(comparison, group),
            family=families.index(_family(comparison, group)),
            family_name=_family(comparison, group),
            color=style_of(names.index(_name(comparison, group)))[0] if len(places) <= MAX_NAMES else "",
            total_bytes=group[TOTAL_BYTES],
            height=in_unit(group[mean], primary),
            deviation=None if group[deviation] is None else in_unit(group[deviation], primary),
            on_front=group[ON_FRONT],
            epsilon=group[EPSILON],
        )
        for place in places
        if (group := groups[place])[mean] is not None
    ]


def _family(comparison: Comparison, group: Record) -> str:
    """The axis that determines colour and shape: the first one that does not change the task."""
    name = next((name for name in comparison.axes if name not in comparison.task_axes), None)
    return comparison.name if name is None else short(name, group[name])


def _name(comparison: Comparison, group: Record) -> str:
    """The labels that distinguish a group from the others of its task."""
    return comparison.group_name(group, without=comparison.task_axes)


def _facets(comparison: Comparison) -> list[tuple[str, list[int]]]:
    """Title and indices of the groups of each task."""
    return [
        (", ".join(short(name, task[name].iloc[0]) for name in comparison.task_axes), task.index.tolist())
        for task in split(comparison.groups, comparison.task_axes)
    ]


def _failures(comparison: Comparison) -> Table | None:
    rows = [[name, one_line(text)] for name, text in comparison.failures.items()]
    advice = "The same command tries them again; failures/ and logs/ hold the whole texts."
    return Table(["Cell", "Reason"], rows, title="Failed", note=advice) if rows else None


def _search(comparison: Comparison) -> Table | None:
    """All trials; the chosen ones are strong."""
    if comparison.trials.empty:
        return None
    axes, key, primary = comparison.cell_axes, str(comparison.searched), comparison.primary
    trials = records(comparison.trials)
    rows = [
        [
            *(trial[name] for name in axes),
            label_of(trial[key]),
            shown(trial[primary.name], primary) if trial[STATE] == FINISHED else trial[STATE],
            one_line(trial[REASON]) or UNKNOWN,
        ]
        for trial in trials
    ]
    best = {(place, len(axes) + column) for place, trial in enumerate(trials) if trial[IS_BEST] for column in (0, 1)}
    header = [*axes, key, f"{primary.label} on validation rows", "failed"]
    return Table(header, rows, numbers_from=len(axes), strong=best, title=f"Search of {key}")


def _citations(comparison: Comparison) -> str:
    """The citations of all finished cells, each once, in the order of papers.bib."""
    return "\n\n".join(entry for entry in entries().values() if any(entry in text for text in comparison.citations))
