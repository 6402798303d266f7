"""The charts that several sections draw: curves, and the axes of all others."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedelta.record.numbers import axis_title
from fedelta.report.drawing import HEIGHT, INK, MUTED, NARROW, Chart, Spec, style_of
from fedelta.tasks.base import Measure

FAINT = 0.4  # opacity of what is less important
MAX_DOTS = 60
LEAST_POINTS = 5.0  # of an axis in percent
LETTER = 5.8  # width of a letter of a label, on average
LONGEST = 30  # letters of a label
# The width of a picture is that of everything in it, axes included.
FIT: Spec = {"type": "fit", "contains": "padding"}


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Args:
        title: with the unit.
        form: of the values that a tooltip shows, in d3's notation.
        domain: first and last value; by default those of the data, rounded.
        has_zero: whether it begins at zero.
        is_log: whether it is logarithmic.
        is_whole: whether it has ticks at whole numbers only.
        ticks: where they are; by default at round numbers.
    """

    title: str
    form: str = ",.4~r"
    domain: tuple[float, float] | None = None
    has_zero: bool = False
    is_log: bool = False
    is_whole: bool = False
    ticks: Sequence[float] = ()

    def encoding(self, field: str, **others: Any) -> Spec:  # Any: JSON
        """The channel of `field` along this axis."""
        scale: Spec = {"type": "log"} if self.is_log else {"zero": self.has_zero}
        if self.domain is not None:
            scale |= {"domain": list(self.domain), "nice": False}
        axis: Spec = {"labelOverlap": True}
        # With a number of ticks Vega would leave out some of those that are given.
        axis |= {"values": list(self.ticks)} if self.ticks else {"tickCount": 6}
        axis |= {"format": ",.4~r"} if self.is_log else {}
        axis |= {"format": ",d", "tickMinStep": 1} if self.is_whole else {}
        return {"field": field, "type": "quantitative", "title": self.title, "scale": scale, "axis": axis} | others

    def tip(self, field: str) -> Spec:
        """The line of a tooltip with the value of `field`."""
        return {"field": field, "type": "quantitative", "title": self.title, "format": self.form}


@dataclass(frozen=True)
class Curve:
    """A curve of a run or a group.

    Args:
        name: of the run or group, and what the curve is where it has several.
        index: number of the run or group, which determines colour and dashes.
        points: positions and heights; what is not finite leaves a gap.
        opacity: from 0 to 1.
        deviations: of the heights, drawn as a band; empty if they are not known.
        is_dotted: whether its points have dots.
    """

    name: str
    index: int
    points: Sequence[tuple[float, float]]
    opacity: float = 1.0
    deviations: Sequence[float | None] = ()
    is_dotted: bool = False


ROUNDS = Axis("Round", form="d", is_whole=True)


def curves(
    lines: Sequence[Curve],
    x: Axis,
    y: Axis,
    others: Sequence[Spec] = (),
    *,
    size: tuple[float, float] = (NARROW, HEIGHT),
    pointer: str = "near",
) -> Chart:
    """Curves, of which the point nearest to the pointer shows its name and values.

    Args:
        lines: the curves; the last of them is on top.
        x: the horizontal axis.
        y: the vertical axis.
        others: layers below the curves.
        size: width and height.
        pointer: a name that is unique within a picture of several charts.
    """
    rows: list[Spec] = [
        {"curve": place, "name": line.name, "x": float(position), "y": float(height)} | _band(line, number, height)
        for place, line in enumerate(lines)
        for number, (position, height) in enumerate(line.points)
    ]
    x = _at_few(x, [row["x"] for row in rows])
    across, up = x.encoding("x"), y.encoding("y")
    shown = {
        "color": _constant(lines, [style_of(line.index)[0] for line in lines]),
        "opacity": _constant(lines, [line.opacity for line in lines]),
    }
    dashes = _constant(lines, [[*style_of(line.index)[1]] or [1, 0] for line in lines])
    layers: list[Spec] = [*others]
    if any("low" in row for row in rows):
        layers.append({"mark": {"type": "area", "opacity": 0.15}, "encoding": _area(across, up, lines)})
    detail = {"field": "curve", "type": "nominal"}
    layers.append({"mark": "line", "encoding": {"x": across, "y": up, "detail": detail, "strokeDash": dashes} | shown})
    if dots := _dots(lines):
        layers.append(
            {
                "data": {"values": dots},
                "mark": {"type": "point", "filled": True, "size": 22},
                "encoding": {"x": across, "y": up} | shown,
            }
        )
    spec = {"width": size[0], "height": size[1], "autosize": FIT, "data": {"values": rows}, "layer": layers}
    pointed = [_pointed(lines, x, y, shown["color"], pointer)] if rows else []
    return Chart(spec, spec | {"layer": [*layers, *pointed]})


def beside(charts: Sequence[Chart], **others: Any) -> Chart:  # Any: JSON
    """Charts side by side as one picture; their pointers have different names."""
    specs = (
        [chart.spec | {"autosize": "pad"} for chart in charts],
        [chart.live | {"autosize": "pad"} for chart in charts],
    )
    static, live = ({"hconcat": parts} | others for parts in specs)
    return Chart(static, live)


def of_measure(
    label: str, measure: Measure, values: Sequence[float], domain: tuple[float, float] | None = None
) -> Axis:
    """The axis of `values` of a measure, in its unit: a fraction from 0 to 100 %, unless all are high.

    An axis around high values spans at least `LEAST_POINTS`, so that one example more or less looks small.

    Args:
        label: of what is measured.
        measure: its unit.
        values: that are shown.
        domain: first and last value, if they are given.
    """
    known = [value for value in values if math.isfinite(value)]
    if domain is None and measure.is_fraction:
        low, high = min(known, default=0.0), max(known, default=0.0)
        if low < 50:
            domain = (0, 101)
        elif high - low < LEAST_POINTS:
            domain = widened(low, high)
    return Axis(axis_title(label, measure), form=".1f" if measure.is_fraction else ",.4~r", domain=domain)


def widened(low: float, high: float) -> tuple[float, float]:
    """`LEAST_POINTS` percent around `low` and `high`, not beyond 100."""
    top = min(100.0, (low + high + LEAST_POINTS) / 2)
    return top - LEAST_POINTS, top


def of_amount(title: str, positions: Sequence[float], others: Sequence[float] = ()) -> Axis:
    """An axis of amounts: logarithmic if a linear one would crowd most `positions` at the left edge.

    Args:
        title: with the unit.
        positions: of what is shown.
        others: of lines, which the axis reaches too.
    """
    known = [position for position in positions if position > 0]
    lowest, highest = min(known, default=0.0), max([*known, *others], default=1.0)
    if len(known) < len(positions) or highest <= 10 * lowest:
        return Axis(title)
    steps = (1, 2, 5) if highest < 300 * lowest else (1,)
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    first, last = 0.9 * lowest, 1.1 * highest
    return Axis(title, domain=(first, last), is_log=True, ticks=[tick for tick in ticks if first <= tick <= last])


def named(most: int = LONGEST) -> Spec:
    """The labels of an axis of names, of which those longer than `most` letters are cut in the middle."""
    half = (most - 1) // 2
    cut = f"slice(datum.label, 0, {half}) + '\N{HORIZONTAL ELLIPSIS}' + slice(datum.label, -{half})"
    return {"labelExpr": f"length(datum.label) > {most} ? {cut} : datum.label", "labelLimit": 0}


def width_of(names: Iterable[str], most: int = LONGEST) -> float:
    """The width of the longest of these labels in units, about."""
    return LETTER * min(most, max(map(len, names)))


def message(text: str) -> Spec:
    """A layer with a text in the middle of an empty picture."""
    return {
        "data": {"values": [{}]},
        "mark": {"type": "text", "text": text, "color": MUTED},
        "encoding": {"x": {"value": {"expr": "width / 2"}}, "y": {"value": {"expr": "height / 2"}}},
    }


def keyed(title: str, names_and_colors: Mapping[str, str], field: str = "kind") -> Spec:
    """The channel of colour with a legend above the picture, in the order of the names."""
    scale = {"domain": list(names_and_colors), "range": list(names_and_colors.values())}
    return {"field": field, "type": "nominal", "scale": scale, "legend": {"title": title or None}}


def _at_few(axis: Axis, positions: Sequence[float]) -> Axis:
    """An axis of whole numbers with a tick at each, where they are few."""
    if not axis.is_whole or not positions or max(positions) - min(positions) > 8:
        return axis
    return replace(axis, ticks=range(int(min(positions)), int(max(positions)) + 1))


def _constant(lines: Sequence[Curve], values: Sequence[Any]) -> Spec:  # Any: colour, dashes or opacity
    scale = {"type": "ordinal", "domain": list(range(len(lines))), "range": list(values)}
    return {"field": "curve", "type": "ordinal", "scale": scale, "legend": None}


def _band(line: Curve, number: int, height: float) -> Spec:
    deviation = line.deviations[number] if line.deviations else None
    return {} if deviation is None else {"low": height - deviation, "high": height + deviation}


def _area(across: Spec, up: Spec, lines: Sequence[Curve]) -> Spec:
    color = _constant(lines, [style_of(line.index)[0] for line in lines])
    return {"x": across, "y": up | {"field": "low"}, "y2": {"field": "high"}, "color": color}


def _dots(lines: Sequence[Curve]) -> list[Spec]:
    """The last point of every curve, and all points of those that have dots."""
    dots = []
    for place, line in enumerate(lines):
        known = [(x, y) for x, y in line.points if math.isfinite(y)]
        shown = known if line.is_dotted and len(known) <= MAX_DOTS else known[-1:]
        dots += [{"curve": place, "x": float(x), "y": float(y)} for x, y in shown]
    return dots


def _pointed(lines: Sequence[Curve], x: Axis, y: Axis, color: Spec, pointer: str) -> Spec:
    """A layer with the point nearest to the pointer, and its values."""
    nearest = {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"}
    # A nominal field of a tooltip is lost at the cells around points, so the text is an expression.
    name = {"Curve": "(datum.datum || datum).name"} if len(lines) > 1 else {}
    texts = name | {
        axis.title: f"format((datum.datum || datum).{field}, '{axis.form}')" for axis, field in ((x, "x"), (y, "y"))
    }
    tooltip = ", ".join(f"{json.dumps(title)}: {text}" for title, text in texts.items())
    return {
        "params": [{"name": pointer, "select": nearest}],
        "transform": [{"filter": "isValid(datum.y)"}],
        "mark": {"type": "point", "filled": True, "size": 60, "stroke": INK, "strokeWidth": 1}
        | {"tooltip": {"expr": f"{{{tooltip}}}"}},
        "encoding": {
            "x": x.encoding("x"),
            "y": y.encoding("y"),
            "color": color,
            "opacity": {"condition": {"param": pointer, "empty": False, "value": 1}, "value": 0},
        },
    }
