"""The figures of the section "Exits": the primary measure against exit and cost, and by exit over the rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedelta.record.numbers import in_unit
from fedelta.report.drawing import INK, MUTED, SERIES, SIZE, STYLES, blank, style
from fedelta.report.exits import Exits
from fedelta.report.plots import traffic_axis
from fedelta.tasks.base import Measure

MAX_LABELS = 14
_LINE = 0.062  # height of a label, as a share of the axis
_NUMBER = "Exit"
_COSTS: dict[str, Callable[[Exits], Sequence[float]]] = {
    _NUMBER: lambda exits: range(1, len(exits.last) + 1),
    "Milliseconds for one example": lambda exits: exits.compute.milliseconds or (),
    "MFLOPs for one example": lambda exits: [flops / 1e6 for flops in exits.compute.flops or ()],
}


def measure_by_cost(runs: Mapping[int, Exits], measured: str) -> Figure:
    """The primary measure against the exit and, if a run has measured it, against the cost of an answer.

    Args:
        runs: number of the run, which determines colour and line, to its exits; all have the same primary measure.
        measured: name of the vertical axis.
    """
    measures = {exits.measure for exits in runs.values()}
    panels = {
        name: costs_of
        for name, costs in _COSTS.items()
        if (costs_of := {index: costs(exits) for index, exits in runs.items() if costs(exits)})
    }
    with style():
        figure = blank((max(1, len(panels) * 2 / 3) * SIZE[0], SIZE[1]))
        grid = {"wspace": 0.08}
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, gridspec_kw=grid)[0]
        for axes, (name, costs_of) in zip(all_axes, panels.items(), strict=True):
            for index, costs in costs_of.items():
                _draw(axes, costs, runs[index], index)
                if len(runs) == 1 and name != _NUMBER:
                    _number_dots(axes, costs, runs[index])
            _scale(axes, name, [costs[-1] for costs in costs_of.values()])
        all_axes[0].set_ylabel(measured)
        _limit(all_axes[0], [value for exits in runs.values() for value in exits.last], measures.pop())
        return figure


def exits_by_round(exits: Exits, measured: str, *, wide: bool = False) -> Figure:
    """The primary measure at each exit against the round; deeper exits have stronger lines.

    Args:
        exits: of one run.
        measured: name of the vertical axis.
        wide: whether it takes the width of the page.
    """
    rounds = sorted(exits.by_round)
    heights = np.array([[in_unit(value, exits.measure) for value in exits.by_round[round]] for round in rounds])
    num_exits = heights.shape[1]
    with style():
        figure = blank(((2 if wide else 1) * SIZE[0], SIZE[1] - 0.3 if wide else SIZE[1]))
        axes = figure.subplots()
        for place in range(num_exits):
            color = _shade(place, num_exits)
            axes.plot(rounds, heights[:, place], color=color, zorder=2)
            axes.plot(rounds[-1:], heights[-1:, place], color=color, marker="o", markersize=4, linestyle="none")
        axes.set(xlabel="Round", ylabel=measured)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        _limit(axes, [value for row in exits.by_round.values() for value in row], exits.measure)
        _name_lines(axes, rounds[-1], heights[-1])
        return figure


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


def _draw(axes: Axes, costs: Sequence[float], exits: Exits, index: int) -> None:
    color, dashes = SERIES[index % len(SERIES)], STYLES[index % len(STYLES)]
    heights = [in_unit(value, exits.measure) for value in exits.last]
    axes.plot(costs, heights, color=color, linestyle=(0, dashes) if dashes else "-")
    axes.plot(costs, heights, color=color, marker="o", markersize=4, linestyle="none")


def _scale(axes: Axes, name: str, ends: Sequence[float]) -> None:
    """Scales the axis from zero, or logarithmically if the costs of the last exits differ greatly between runs."""
    axes.set_xlabel(name)
    if name == _NUMBER:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        return
    traffic_axis(axes, min(ends), max(ends))
    if axes.get_xscale() == "linear":
        axes.set_xlim(0, 1.06 * max(ends))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _number_dots(axes: Axes, costs: Sequence[float], exits: Exits) -> None:
    """Writes the number of the exit below and to the right of each dot, away from a rising line."""
    if len(costs) > MAX_LABELS:
        return
    for number, (cost, value) in enumerate(zip(costs, exits.last, strict=True), start=1):
        axes.annotate(
            f"{number}",
            (cost, in_unit(value, exits.measure)),
            xytext=(3, -4),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=8,
            color=MUTED,
        )


def _name_lines(axes: Axes, last_round: int, heights: Sequence[float]) -> None:
    """Names lines at their ends, with a thin connecting line if a name had to move; if there are many, only some."""
    every = -(-len(heights) // MAX_LABELS)
    named = [place for place in range(len(heights)) if (len(heights) - 1 - place) % every == 0]
    bottom, top = axes.get_ylim()
    places = spread([heights[place] for place in named], _LINE * (top - bottom), bottom, top)
    for place, height in zip(named, places, strict=True):
        moved = abs(height - heights[place]) > 0.2 * _LINE * (top - bottom)
        axes.annotate(
            f"exit {place + 1}",
            (last_round, heights[place]),
            xytext=(1.03, (height - bottom) / (top - bottom)),
            textcoords="axes fraction",
            ha="left",
            va="center",
            fontsize=8,
            color=INK,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": MUTED,
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            }
            if moved
            else None,
        )


def _limit(axes: Axes, values: Sequence[float], measure: Measure) -> None:
    """Sets the vertical range of a fraction: from zero, or around the values if all are high."""
    if not measure.is_fraction:
        return
    lowest, highest = 100 * min(values), 100 * max(values)
    room = max(0.08 * (highest - lowest), 0.5)
    axes.set_ylim((0, 101) if lowest < 50 else (lowest - room, min(100.5, highest + room)))


def _shade(place: int, number: int) -> tuple[float, float, float, float]:
    """The colour of an exit; deeper exits are stronger."""
    red, green, blue, _ = to_rgba(SERIES[0])
    return red, green, blue, 0.35 + 0.65 * (place / max(1, number - 1))
