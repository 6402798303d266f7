"""The figures of a comparison: its primary measure against bytes with the Pareto front, and against rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from fedelta.record.numbers import MIB, axis_title, in_unit
from fedelta.report.drawing import INK, MUTED, SERIES, SIZE, blank, settle, single, style
from fedelta.report.plots import line, traffic_axis
from fedelta.tasks.base import Measure

_Horizontal = Literal["left", "center", "right"]
_Vertical = Literal["bottom", "center", "top"]
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
# With more marks than this, names would overlap: the plot is wide and shows numbers instead.
MAX_NAMES = 8
# Possible positions of a name beside its mark, in order of preference: offset right and up in points, alignment.
_SIDES: tuple[tuple[tuple[float, float], _Horizontal, _Vertical], ...] = (
    ((6, 0), "left", "center"),
    ((0, 7), "center", "bottom"),
    ((0, -7), "center", "top"),
    ((-6, 0), "right", "center"),
    ((5, 5), "left", "bottom"),
    ((5, -5), "left", "top"),
    ((-5, 5), "right", "bottom"),
    ((-5, -5), "right", "top"),
)


@dataclass(frozen=True)
class Mark:
    """A group in a plot.

    Args:
        text: its name or number.
        family: index of its family, which determines colour and shape.
        family_name: name of the family in the legend.
        total_bytes: of a run, both directions.
        height: mean of the primary measure, in its unit: a fraction in percent.
        deviation: likewise; None with one seed.
        on_front: whether it belongs to the Pareto front.
        epsilon: None for a group that guarantees nothing.
    """

    text: str
    family: int
    family_name: str
    total_bytes: float
    height: float
    deviation: float | None
    on_front: bool
    epsilon: float | None = None


def measure_by_bytes(marks: Sequence[Mark], primary: Measure, *, wide: bool) -> Figure:
    """The primary measure against the MiB of a run, with the Pareto front as a line; needs at least one mark.

    Args:
        marks: of groups that learn the same task.
        primary: the measure of their heights.
        wide: whether the plot takes the width of the page and has a legend of families, for many marks.
    """
    with style():
        figure = blank((2 * SIZE[0], 1.5 * SIZE[1]) if wide else SIZE)
        axes = figure.subplots()
        positions = [mark.total_bytes / MIB for mark in marks]
        traffic_axis(axes, min(positions), max(positions))
        _draw_front(axes, marks)
        for mark in marks:
            _draw_mark(axes, mark)
        axes.set(xlabel="Sent over a run, both directions (MiB)", ylabel=axis_title(primary.label, primary))
        axes.margins(0.12, 0.12)
        if wide:
            _draw_legend(figure, axes, marks)
        _write_names(figure, axes, marks)
        return figure


def measure_by_round(curves: Sequence[tuple[int, Sequence[tuple[int, float]]]], primary: Measure) -> Figure:
    """The mean of the primary measure against the round.

    Args:
        curves: the place of its name in the legend, and rounds with the mean as records have it.
        primary: what is drawn.
    """
    with style():
        figure, axes = single()
        for index, points in curves:
            line(axes, [(round, in_unit(value, primary)) for round, value in points], index)
        axes.set(xlabel="Round", ylabel=axis_title(primary.label, primary))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        return figure


def measure_by_epsilon(marks: Sequence[Mark], primary: Measure, *, wide: bool) -> Figure:
    """The primary measure against epsilon, a line for each family; groups that guarantee nothing are on the right.

    Args:
        marks: of groups that learn the same task, some of them with an epsilon.
        primary: the measure of their heights.
        wide: whether the plot takes the width of the page.
    """
    known = sorted({mark.epsilon for mark in marks if mark.epsilon is not None})
    # Behind the largest epsilon by as much as there is between the first two, if there are two.
    beyond = known[-1] * max(2.0, known[1] / known[0] if len(known) > 1 else 2.0)
    with style():
        figure = blank((2 * SIZE[0], SIZE[1]) if wide else SIZE)
        axes = figure.subplots()
        for family, name in sorted({mark.family: mark.family_name for mark in marks}.items()):
            members = [mark for mark in marks if mark.family == family]
            points = sorted((mark.epsilon or beyond, mark.height, mark.deviation or 0.0) for mark in members)
            axes.errorbar(
                [point[0] for point in points],
                [point[1] for point in points],
                yerr=[point[2] for point in points],
                marker=MARKERS[family % len(MARKERS)],
                color=SERIES[family % len(SERIES)],
                markersize=5,
                elinewidth=1.0,
                capsize=2.5,
                label=f" {name}",
            )
        axes.set_xscale("log")
        is_open = any(mark.epsilon is None for mark in marks)
        ticks = _apart(known) + ([beyond] if is_open else [])
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks[: len(ticks) - is_open]] + ["none"] * is_open)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="Epsilon", ylabel=axis_title(primary.label, primary))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=6 if wide else 3, fontsize=8)
        return figure


def _apart(epsilons: Sequence[float]) -> list[float]:
    """Those of the ascending `epsilons` whose labels do not touch: each at least a fifth above the one before."""
    apart: list[float] = []
    for epsilon in epsilons:
        if not apart or epsilon >= 1.2 * apart[-1]:
            apart.append(epsilon)
    return apart


def _draw_mark(axes: Axes, mark: Mark) -> None:
    color = SERIES[mark.family % len(SERIES)]
    axes.errorbar(
        [mark.total_bytes / MIB],
        [mark.height],
        yerr=None if mark.deviation is None else [mark.deviation],
        marker=MARKERS[mark.family % len(MARKERS)],
        markersize=6,
        color=color,
        markerfacecolor=color if mark.on_front else "none",
        elinewidth=1.0,
        capsize=2.5,
        linestyle="none",
        zorder=3,
    )


def _draw_front(axes: Axes, marks: Sequence[Mark]) -> None:
    """Draws the best mean for each number of bytes."""
    corners = _front_corners(marks)
    x, y = [corner[0] for corner in corners], [corner[1] for corner in corners]
    axes.plot(x, y, color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)


def _front_corners(marks: Sequence[Mark]) -> list[tuple[float, float]]:
    """MiB and height along the steps of the front."""
    front = sorted((mark for mark in marks if mark.on_front), key=lambda mark: mark.total_bytes)
    points = [(mark.total_bytes / MIB, mark.height) for mark in front]
    turns = [[before, (after[0], before[1])] for before, after in pairwise(points)]
    return [corner for turn in turns for corner in turn] + points[-1:]


def _draw_legend(figure: Figure, axes: Axes, marks: Sequence[Mark]) -> None:
    for family, name in sorted({mark.family: mark.family_name for mark in marks}.items()):
        color, marker = SERIES[family % len(SERIES)], MARKERS[family % len(MARKERS)]
        axes.plot([], [], marker=marker, color=color, linestyle="none", label=f" {name}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=6, fontsize=8, handlelength=1.0)


def _write_names(figure: Figure, axes: Axes, marks: Sequence[Mark]) -> None:
    """Writes the text of each mark on the side where it covers the least."""
    settle(figure)
    occupied = _taken(figure, axes, marks)
    for mark in sorted(marks, key=lambda mark: -mark.height):
        note = axes.annotate(
            mark.text,
            (mark.total_bytes / MIB, mark.height),
            textcoords="offset points",
            xytext=(0, 0),
            color=INK,
            fontsize=8,
            zorder=4,
        )
        side = min(range(len(_SIDES)), key=lambda index: (_covered(note, index, axes, occupied), index))
        occupied.append(_put(note, side))


def _taken(figure: Figure, axes: Axes, marks: Sequence[Mark]) -> list[Bbox]:
    """The boxes of marks, bars and the front, in pixels."""
    half = 4.5 * figure.dpi / 72
    boxes = []
    for mark in marks:
        x, y = axes.transData.transform((mark.total_bytes / MIB, mark.height))
        end = mark.height + (mark.deviation or 0.0)
        bar = abs(axes.transData.transform((mark.total_bytes / MIB, end))[1] - y)
        boxes += [_around(x, y, half, half), _around(x, y, half / 2, bar)]
    corners = [axes.transData.transform(corner) for corner in _front_corners(marks)]
    for (left, low), (right, high) in pairwise(corners):
        # A line has no area, so its box is made four pixels wide.
        boxes.append(Bbox([[left - 2, min(low, high) - 2], [right + 2, max(low, high) + 2]]))
    return boxes


def _around(x: float, y: float, half_width: float, half_height: float) -> Bbox:
    return Bbox([[x - half_width, y - half_height], [x + half_width, y + half_height]])


def _put(note: Annotation, side: int) -> Bbox:
    """Moves a name to a side of its mark; returns its box."""
    offset, horizontal, vertical = _SIDES[side]
    note.set_position(offset)
    note.set_horizontalalignment(horizontal)
    note.set_verticalalignment(vertical)
    return note.get_window_extent()


def _covered(note: Annotation, side: int, axes: Axes, occupied: Sequence[Bbox]) -> float:
    """Area of other boxes that the name would cover on this side, plus its area outside the plot."""
    box = _put(note, side)
    hidden = sum(_area(shared) for area in occupied if (shared := Bbox.intersection(box, area)) is not None)
    inside = Bbox.intersection(box, axes.bbox)
    return round(hidden + _area(box) - (0.0 if inside is None else _area(inside)), 3)


def _area(box: Bbox) -> float:
    return float(box.width * box.height)
