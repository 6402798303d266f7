"""The charts of the section "Exits": the primary measure against exit and cost, and by exit over the rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedelta.record.numbers import in_unit
from fedelta.report.charts import ROUNDS, Axis, Curve, beside, curves, of_amount, of_measure
from fedelta.report.drawing import HEIGHT, MUTED, NARROW, WIDE, Chart, Spec
from fedelta.report.exits import Exits
from fedelta.tasks.base import Measure

MAX_LABELS = 14
_LINE = 0.062  # height of a label, as a share of the axis
_NUMBER = "Exit"
_COSTS: dict[str, Callable[[Exits], Sequence[float]]] = {
    _NUMBER: lambda exits: range(1, len(exits.last) + 1),
    "Milliseconds for one example": lambda exits: exits.compute.milliseconds or (),
    "MFLOPs for one example": lambda exits: [flops / 1e6 for flops in exits.compute.flops or ()],
}


def measure_by_cost(runs: Mapping[int, Exits], names: Mapping[int, str], measured: str) -> Chart:
    """The primary measure against the exit and, if a run has measured it, against the cost of an answer.

    Args:
        runs: number of the run, which determines colour and line, to its exits; all have the same primary measure.
        names: number of the run to its name.
        measured: name of the vertical axis.
    """
    panels = {
        name: costs_of
        for name, costs in _COSTS.items()
        if (costs_of := {index: costs(exits) for index, exits in runs.items() if costs(exits)})
    }
    values = [value for exits in runs.values() for value in exits.last]
    measure = next(iter(runs.values())).measure
    y = of_measure(measured, measure, [in_unit(value, measure) for value in values], _range(values, measure))
    charts = []
    for number, (name, costs_of) in enumerate(panels.items()):
        lines = [
            Curve(names[index], index, _points(costs, runs[index]), is_dotted=True) for index, costs in costs_of.items()
        ]
        x = _axis(name, [costs[-1] for costs in costs_of.values()])
        size = (NARROW, HEIGHT) if len(panels) == 1 else ((WIDE - 160) / len(panels), HEIGHT - 50)
        charts.append(curves(lines, x, y, size=size, pointer=f"near{number}"))
    return charts[0] if len(charts) == 1 else beside(charts, resolve={"scale": {"y": "shared"}})


def exits_by_round(exits: Exits, measured: str, *, wide: bool = False) -> Chart:
    """The primary measure at each exit against the round; deeper exits have stronger lines.

    Args:
        exits: of one run.
        measured: name of the vertical axis.
        wide: whether it takes the width of the page.
    """
    rounds, measure, number = sorted(exits.by_round), exits.measure, len(exits.last)
    lines = [
        Curve(
            f"exit {place + 1}",
            0,
            [(round, in_unit(exits.by_round[round][place], measure)) for round in rounds],
            opacity=0.35 + 0.65 * place / max(1, number - 1),
        )
        for place in range(number)
    ]
    values = [value for row in exits.by_round.values() for value in row]
    domain = _range(values, measure)
    y = of_measure(measured, measure, [in_unit(value, measure) for value in values], domain)
    names = _names(rounds[-1], [line.points[-1][1] for line in lines], domain)
    chart = curves(lines, ROUNDS, y, names, size=(WIDE if wide else NARROW, HEIGHT))
    room = {"padding": {"left": 4, "top": 4, "bottom": 4, "right": 56}}
    return Chart(chart.spec | room, chart.live | room)


def spread(heights: Sequence[float], gap: float, lowest: float, highest: float) -> list[float]:
    """Heights for labels: close to `heights`, in the same order, `gap` apart, and within the bounds if possible.

    Labels that would overlap are centred on the mean of their heights.

    >>> spread([0.0, 5.0, 5.5, 9.0], 1.0, 0.0, 10.0)
    [0.0, 4.75, 5.75, 9.0]
    """
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    blocks: list[tuple[float, int]] = []  # middle and number of labels
    for place in order:
        middle, number = heights[place], 1
        while True:
            room = (number - 1) * gap / 2
            middle = max(lowest + room, min(highest - room, middle))
            if not blocks or blocks[-1][0] + (blocks[-1][1] + number) * gap / 2 <= middle:
                break
            below, below_number = blocks.pop()
            middle = (below * below_number + middle * number) / (number + below_number)
            number += below_number
        blocks.append((middle, number))
    places = [middle + (index - (number - 1) / 2) * gap for middle, number in blocks for index in range(number)]
    return [places[order.index(place)] for place in range(len(heights))]


def _points(costs: Sequence[float], exits: Exits) -> list[tuple[float, float]]:
    return [(cost, in_unit(value, exits.measure)) for cost, value in zip(costs, exits.last, strict=True)]


def _axis(name: str, ends: Sequence[float]) -> Axis:
    """An axis from zero, or a logarithmic one if the costs of the last exits differ greatly between runs."""
    if name == _NUMBER:
        return Axis(name, form="d", is_whole=True)
    return axis if (axis := of_amount(name, ends)).is_log else Axis(name, has_zero=True)


def _names(last_round: int, heights: Sequence[float], domain: tuple[float, float]) -> list[Spec]:
    """Names beside the ends of the curves, with a thin line if a name had to move; of many curves, only some."""
    every = -(-len(heights) // MAX_LABELS)
    named = [place for place in range(len(heights)) if (len(heights) - 1 - place) % every == 0]
    bottom, top = domain
    places = spread([heights[place] for place in named], _LINE * (top - bottom), bottom, top)
    rows = [
        {"x": last_round, "y": place, "end": heights[index], "name": f"exit {index + 1}"}
        for index, place in zip(named, places, strict=True)
    ]
    up = {"type": "quantitative"}
    aside = {"value": {"expr": "width + 16"}}
    return [
        {
            "data": {"values": rows},
            "mark": {"type": "rule", "color": MUTED, "strokeWidth": 0.6, "clip": False},
            "encoding": {
                "x": {"value": {"expr": "width + 3"}},
                "x2": {"value": {"expr": "width + 14"}},
                "y": {"field": "end"} | up,
                "y2": {"field": "y"},
            },
        },
        {
            "data": {"values": rows},
            "mark": {"type": "text", "align": "left", "baseline": "middle", "clip": False},
            "encoding": {"x": aside, "y": {"field": "y"} | up, "text": {"field": "name"}},
        },
    ]


def _range(values: Sequence[float], measure: Measure) -> tuple[float, float]:
    """The vertical range in the unit of the measure: a fraction from zero, or around the values if all are high."""
    lowest, highest = in_unit(min(values), measure), in_unit(max(values), measure)
    room = max(0.08 * (highest - lowest), 0.5 if measure.is_fraction else 1e-9)
    if not measure.is_fraction:
        return lowest - room, highest + room
    return (0.0, 101.0) if lowest < 50 else (lowest - room, min(100.5, highest + room))
