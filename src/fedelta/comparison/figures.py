"""The charts of a comparison: its primary measure against bytes with the Pareto front, against epsilon and rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fedelta.privacy.shown import shown_epsilon
from fedelta.record.numbers import MIB, bare, in_unit, mebibytes
from fedelta.report.charts import FIT, LEAST_POINTS, ROUNDS, Axis, Curve, curves, keyed, of_amount, of_measure, widened
from fedelta.report.drawing import HEIGHT, MUTED, NARROW, SERIES, WIDE, Chart, Spec
from fedelta.report.exit_plots import spread
from fedelta.tasks.base import Measure

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
# With more marks than this the plot is wide, and curves would not be told apart.
MAX_NAMES = 12
_LINE = 0.04  # height of a number, as a share of the heights of all marks
_BESIDE = 1.04  # marks whose places differ by less than this factor stand above each other


@dataclass(frozen=True)
class Mark:
    """A group in a plot.

    Args:
        number: its row in the table, from 1; written beside the mark.
        name: of the group.
        family: index of its family, which determines colour and shape.
        family_name: name of the family in the legend.
        color: its own, if the groups are few; empty for that of its family.
        total_bytes: of a run, both directions.
        height: mean of the primary measure, in its unit: a fraction in percent.
        deviation: likewise; None with one seed.
        on_front: whether it belongs to the Pareto front.
        epsilon: None for a group that guarantees nothing.
    """

    number: int
    name: str
    family: int
    family_name: str
    color: str
    total_bytes: float
    height: float
    deviation: float | None
    on_front: bool
    epsilon: float | None = None


def measure_by_bytes(marks: Sequence[Mark], primary: Measure, *, wide: bool) -> Chart:
    """The primary measure against the MiB of a run, with the Pareto front as a line; needs at least one mark.

    Args:
        marks: of groups that learn the same task.
        primary: the measure of their heights.
        wide: whether the plot takes the width of the page, for many marks.
    """
    x = of_amount("Sent over a run, both directions (MiB)", [mark.total_bytes / MIB for mark in marks])
    front = [{"x": position, "y": height} for position, height in _front_corners(marks)]
    across = x.encoding("x")
    across["scale"] |= {"padding": 14}
    up = _height(marks, primary).encoding("y")
    line = {
        "data": {"values": front},
        "mark": {"type": "line", "color": MUTED, "strokeWidth": 1, "strokeDash": [5, 3]},
        "encoding": {"x": across, "y": up},
    }
    return _of_marks(marks, across, up, [line], tip={"field": "sent", "title": x.title}, primary=primary, wide=wide)


def measure_by_round(lines: Sequence[Curve], primary: Measure) -> Chart:
    """The mean of the primary measure against the round, with a band of one deviation over the seeds."""
    values = [height for line in lines for _, height in line.points]
    return curves(lines, ROUNDS, of_measure(primary.label, primary, values))


def measure_by_epsilon(marks: Sequence[Mark], primary: Measure, *, wide: bool) -> Chart:
    """The primary measure against epsilon, a line for each family; groups that guarantee nothing are on the right.

    Args:
        marks: of groups that learn the same task, some of them with an epsilon.
        primary: the measure of their heights.
        wide: whether the plot takes the width of the page.
    """
    known = sorted({mark.epsilon for mark in marks if mark.epsilon is not None})
    # Behind the largest epsilon by as much as there is between the first two, if there are two.
    beyond = known[-1] * max(2.0, known[1] / known[0] if len(known) > 1 else 2.0)
    is_open = any(mark.epsilon is None for mark in marks)
    ticks = _apart(known) + ([beyond] if is_open else [])
    domain = (0.9 * known[0], 1.1 * ticks[-1])
    across = Axis("Epsilon", domain=domain, is_log=True, ticks=ticks).encoding("epsilon")
    if is_open:
        across["axis"] |= {"labelExpr": f"datum.value > {known[-1] * 1.001} ? 'none' : datum.label"}
    up = _height(marks, primary).encoding("y")
    marks = [replace(mark, color="") for mark in marks]  # a line joins the marks of a family
    lines = {
        "mark": {"type": "line", "strokeWidth": 1.2},
        "encoding": {"x": across, "y": up, "color": _families(marks)["color"]},
    }
    tip = {"field": "guaranteed", "title": "Epsilon"}
    return _of_marks(marks, across, up, [lines], tip=tip, primary=primary, wide=wide, beyond=beyond)


def _of_marks(
    marks: Sequence[Mark],
    across: Spec,
    up: Spec,
    others: Sequence[Spec],
    *,
    tip: Spec,
    primary: Measure,
    wide: bool,
    beyond: float = 0.0,
) -> Chart:
    """Marks with their numbers, and bars of one deviation; hollow if they are not on the front."""
    height = _height(marks, primary)
    rows = _apart_in_height([_row(mark, primary, beyond) for mark in marks], across["field"])
    names = [{"field": "number", "title": "Row"}, {"field": "name", "title": "Group"}]
    tooltip = [*names, tip, {"field": "text", "title": height.title}]
    up = up | {"scale": up["scale"] | {"padding": 12}}
    place = {"x": across, "y": up}
    families = _families(marks)
    shown = place | families | {"tooltip": tooltip}
    spread = {"x": across, "y": up | {"field": "low"}, "y2": {"field": "high"}, "color": families["color"]}
    layers: list[Spec] = [
        *others,
        {"transform": [{"filter": "isValid(datum.low)"}], "mark": "rule", "encoding": spread},
        {"mark": {"type": "point", "size": 55, "strokeWidth": 1.6}, "encoding": shown},
        {
            "transform": [{"filter": "datum.on_front"}],
            "mark": {"type": "point", "size": 55, "filled": True},
            "encoding": shown,
        },
        {
            "mark": {"type": "text", "align": "left", "dx": 7, "dy": -6, "fontSize": 10},
            "encoding": {"x": across, "y": up | {"field": "beside"}, "text": {"field": "number"}},
        },
    ]
    size = {"width": WIDE if wide else NARROW, "height": HEIGHT + (120 if wide else 20), "autosize": FIT}
    return Chart(size | {"data": {"values": rows}, "layer": layers})


def _row(mark: Mark, primary: Measure, beyond: float) -> Spec:
    unit = in_unit(1, primary)
    deviation = None if mark.deviation is None else mark.deviation / unit
    row: Spec = {
        "x": mark.total_bytes / MIB,
        "y": mark.height,
        "epsilon": mark.epsilon or beyond,
        "guaranteed": "none" if mark.epsilon is None else shown_epsilon(mark.epsilon),
        "number": str(mark.number),
        "name": mark.name,
        "family": mark.family_name,
        "color": mark.color,
        "on_front": mark.on_front,
        "sent": mebibytes(mark.total_bytes),
        "text": bare(mark.height / unit, primary, deviation),
    }
    if mark.deviation is None:
        return row
    return row | {
        "low": mark.height - mark.deviation,
        "high": mark.height + mark.deviation,
    }


def _apart_in_height(rows: Sequence[Spec], field: str) -> list[Spec]:
    """The rows with the heights of their numbers, which do not cover each other at marks of about the same `field`."""
    low, high = (end(row["y"] for row in rows) for end in (min, max))
    columns: list[list[Spec]] = []
    for row in sorted(rows, key=lambda row: row[field]):
        if not columns or row[field] > _BESIDE * columns[-1][0][field]:
            columns.append([])
        columns[-1].append(row)
    beside: dict[str, float] = {}
    for column in columns:
        heights = spread([row["y"] for row in column], _LINE * (high - low), low, high)
        beside |= {row["number"]: height for row, height in zip(column, heights, strict=True)}
    return [row | {"beside": beside[row["number"]]} for row in rows]


def _families(marks: Sequence[Mark]) -> dict[str, Spec]:
    """The channels of colour and shape, with one legend above the plot."""
    if all(mark.color for mark in marks):
        return {"color": {"field": "color", "type": "nominal", "scale": None}}
    names = dict(sorted({mark.family: mark.family_name for mark in marks}.items()))
    color = keyed("", {name: SERIES[family % len(SERIES)] for family, name in names.items()}, "family")
    shape = keyed("", {name: SHAPES[family % len(SHAPES)] for family, name in names.items()}, "family")
    return {"color": color, "shape": shape}


def _height(marks: Sequence[Mark], primary: Measure) -> Axis:
    """The axis of the measure, around the marks with their bars."""
    ends = [mark.height + sign * (mark.deviation or 0.0) for mark in marks for sign in (-1, 1)]
    low, high = min(ends), max(ends)
    domain = widened(low, high) if primary.is_fraction and high - low < LEAST_POINTS else (low, high)
    return of_measure(primary.label, primary, ends, domain if domain[0] < domain[1] else None)


def _apart(epsilons: Sequence[float]) -> list[float]:
    """Those of the ascending `epsilons` whose labels do not touch: each at least a fifth above the one before."""
    apart: list[float] = []
    for epsilon in epsilons:
        if not apart or epsilon >= 1.2 * apart[-1]:
            apart.append(epsilon)
    return apart


def _front_corners(marks: Sequence[Mark]) -> list[tuple[float, float]]:
    """MiB and height along the steps of the front."""
    front = sorted((mark for mark in marks if mark.on_front), key=lambda mark: mark.total_bytes)
    points = [(mark.total_bytes / MIB, mark.height) for mark in front]
    turns = [[before, (after[0], before[1])] for before, after in pairwise(points)]
    return [corner for turn in turns for corner in turn] + points[-1:]
