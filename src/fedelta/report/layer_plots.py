"""The charts of the section "Layers": intervals by round, discrepancy by group, and the curves of a choice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from fedelta.report.charts import FIT, Axis, Curve, curves, keyed
from fedelta.report.drawing import INK, MUTED, NARROW, SERIES, Chart, Spec
from fedelta.report.layers import IntervalChoice, Layers
from fedelta.report.plots import named_rows

_ROW, _MAX_HEIGHT = 17, 460  # units


def intervals_by_round(layers: Layers) -> Chart:
    """Interval of each group in each round, with the number of times and of scalars that it was averaged."""
    names, num_rounds = list(layers.sizes), len(layers.intervals)
    levels = sorted(set(layers.intervals.flatten().tolist()))
    shades = {f"{level}": _shade(level, layers.strategy.phi) for level in levels}
    heat: Spec = {
        "data": {"values": _stretches(names, layers)},
        "mark": {"type": "rect", "color": SERIES[0]},
        "encoding": {
            "x": Axis("Round", is_whole=True, domain=(0.5, num_rounds + 0.5)).encoding("from"),
            "x2": {"field": "to"},
            "y": named_rows("group", names),
            "opacity": {
                "field": "interval",
                "type": "ordinal",
                "sort": list(shades),
                "scale": {"domain": list(shades), "range": list(shades.values())},
                "legend": {"title": "Interval in rounds", "symbolType": "square"},
            },
            "tooltip": [
                {"field": "group", "title": "Group"},
                {"field": "interval", "title": "Interval in rounds"},
                {"field": "rounds", "title": "Rounds"},
            ],
        },
    }
    counts, sizes = layers.num_syncs.tolist(), list(layers.sizes.values())
    most = layers.num_counted
    often = _bars(names, counts, [most] * len(names), Axis("Averaged in rounds", has_zero=True, form=",d"))
    scalars = [number * size for number, size in zip(counts, sizes, strict=True)]
    many = _bars(names, scalars, [most * size for size in sizes], Axis("Scalars averaged", has_zero=True, form=",d"))
    height = _height(len(names))
    views = [part | {"width": width, "height": height} for part, width in ((heat, 520), (often, 120), (many, 120))]
    return Chart({"hconcat": views, "spacing": 14})


def discrepancy_by_group(layers: Layers) -> Chart:
    """Unit discrepancy of each group: the last value, and the range over the run; at least one must be above zero.

    A logarithmic axis has no zero, so groups that end with zero have a hollow mark at the left edge.
    """
    values, names = layers.unit_discrepancy.numpy(), list(layers.sizes)
    edge = values[values > 0].min() / 2
    rows = []
    for name, of_group in zip(names, values.T, strict=True):
        known, last = of_group[of_group > 0], float(of_group[-1])
        row: Spec = {"group": name, "last": last, "at": last or edge, "is_zero": last == 0}
        rows.append(row | ({"low": known.min().item(), "high": known.max().item()} if len(known) else {}))
    x = Axis("Unit discrepancy", form=".2e", is_log=True, domain=(edge * 0.9, values.max() * 1.1))
    across = x.encoding("at")
    across["axis"] |= {"format": ".0e", "tickCount": 4}
    y = named_rows("group", names)
    tooltip = [{"field": "group", "title": "Group"}, *(
        {"field": field, "title": title, "format": ".2e"}
        for field, title in (("last", "Last"), ("low", "Lowest"), ("high", "Highest"))
    )]  # fmt: skip
    layers_of: list[Spec] = [
        {
            "transform": [{"filter": "isValid(datum.low)"}],
            "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.35, "color": SERIES[0]},
            "encoding": {"x": across | {"field": "low"}, "x2": {"field": "high"}, "y": y, "tooltip": tooltip},
        },
        {
            "mark": {"type": "point", "size": 34, "strokeWidth": 1.4},
            "encoding": {"x": across, "y": y, "tooltip": tooltip},
        },
        {
            "transform": [{"filter": "!datum.is_zero"}],
            "mark": {"type": "point", "size": 34, "filled": True},
            "encoding": {"x": across, "y": y, "tooltip": tooltip},
        },
    ]
    size = {"width": NARROW, "height": 55 + _height(len(names)), "autosize": FIT}
    return Chart(size | {"data": {"values": rows}, "layer": layers_of})


def discrepancy_curves(choice: IntervalChoice) -> Chart:
    """delta_l and 1 - lambda_l against l, from l = 0 on, with their crossing marked (FedLAMA's Fig. 1)."""
    delta, rest = choice_curves(choice)
    names = ("δ: discrepancy of the first l groups", "1 \N{MINUS SIGN} λ: parameters of the others")
    lines = [
        Curve(name, index, list(enumerate((100 * shares).tolist())))
        for index, (name, shares) in enumerate(zip(names, (delta, rest), strict=True))
    ]
    x = Axis("Groups l, by ascending unit discrepancy", form="d", is_whole=True)
    y = Axis("Share (%)", form=".1f", domain=(-1, 101))
    return curves(lines, x, y, _crossing_mark(delta, rest, x, y))


def choice_curves(choice: IntervalChoice) -> tuple[np.ndarray, np.ndarray]:
    """delta_l and 1 - lambda_l for l = 0, 1, 2, ..."""
    delta = np.concatenate([[0.0], choice.curves.delta.numpy()])
    return delta, np.concatenate([[1.0], choice.curves.one_minus_lambda.numpy()])


def crossing(delta: np.ndarray, rest: np.ndarray) -> tuple[float, float]:
    """The point where a rising and a falling curve over 0, 1, 2, ... cross, with linear interpolation.

    >>> crossing(np.array([0.0, 0.25, 1.0]), np.array([1.0, 0.75, 0.0]))
    (1.3333333333333333, 0.5)
    """
    first = int(np.flatnonzero(delta >= rest)[0])
    before, after = rest[first - 1] - delta[first - 1], delta[first] - rest[first]
    part = before / (before + after)
    return float(first - 1 + part), float(delta[first - 1] + part * (delta[first] - delta[first - 1]))


def _crossing_mark(delta: np.ndarray, rest: np.ndarray, x: Axis, y: Axis) -> list[Spec]:
    """A dot at the crossing of the curves, and their names."""
    position, share = crossing(delta, rest)
    values = [{"x": position, "y": 100 * share}]
    place = {"x": x.encoding("x"), "y": y.encoding("y")}
    key = keyed(
        "",
        {"δ: discrepancy of the first l groups": SERIES[0], "1 \N{MINUS SIGN} λ: parameters of the others": SERIES[1]},
    )
    key["legend"] |= {"symbolType": "square", "symbolOpacity": 1, "symbolStrokeWidth": 0, "columns": 1}
    names = [{"kind": name} for name in key["scale"]["domain"]]
    return [
        {"data": {"values": names}, "mark": {"type": "point", "opacity": 0}, "encoding": {"fill": key}},
        {
            "data": {"values": values},
            "mark": {"type": "point", "filled": True, "color": INK, "size": 40},
            "encoding": place,
        },
    ]


def _stretches(names: Sequence[str], layers: Layers) -> list[Spec]:
    """The intervals of each group, with rounds in which one was in force together."""
    rows = []
    for name, intervals in zip(names, layers.intervals.T.tolist(), strict=True):
        for interval, members in groupby(enumerate(intervals, start=1), key=lambda pair: pair[1]):
            rounds = [round for round, _ in members]
            rows.append(
                {"group": name, "interval": f"{interval}", "from": rounds[0] - 0.5, "to": rounds[-1] + 0.5}
                | {"rounds": f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"{rounds[0]}"}
            )
    return rows


def _bars(names: Sequence[str], values: Sequence[float], most: Sequence[float], x: Axis) -> Spec:
    """Bars by group; faint bars show the most that was possible."""
    rows = [
        {"group": name, "value": value, "most": largest}
        for name, value, largest in zip(names, values, most, strict=True)
    ]
    y = named_rows("group", names) | {"axis": None}
    tooltip = [
        {"field": "group", "title": "Group"},
        x.tip("value"),
        {"field": "most", "title": "At most", "format": ",d"},
    ]
    across = x.encoding("most")
    across["axis"] |= {"tickCount": 2, "format": "~s"}
    return {
        "data": {"values": rows},
        "encoding": {"y": y, "tooltip": tooltip},
        "layer": [
            {"mark": {"type": "bar", "color": MUTED, "opacity": 0.2}, "encoding": {"x": across}},
            {"mark": {"type": "bar", "color": SERIES[0]}, "encoding": {"x": across | {"field": "value"}}},
        ],
    }


def _height(num_groups: int) -> float:
    """The height of the rows."""
    return min(_MAX_HEIGHT, max(100, _ROW * num_groups))


def _shade(interval: int, phi: int) -> float:
    """The opacity of an interval; longer intervals are stronger."""
    divisors = [divisor for divisor in range(1, phi + 1) if phi % divisor == 0]
    return 0.15 + 0.85 * divisors.index(interval) / max(1, len(divisors) - 1)
