"""The figures of the section "Layers": intervals by round, discrepancy by group, and the curves of a choice."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fedelta.report.drawing import INK, MUTED, SERIES, SIZE, blank, single, style
from fedelta.report.layers import IntervalChoice, Layers
from fedelta.report.plots import shortened

MAX_NAMES = 30
_ROW, _MAX_HEIGHT = 0.17, 5.2  # inches


def intervals_by_round(layers: Layers) -> Figure:
    """Interval of each group in each round, with the number of times and of scalars that it was averaged."""
    num_rounds, num_groups = layers.intervals.shape
    levels = sorted(set(layers.intervals.flatten().tolist()))
    with style():
        figure = blank((2 * SIZE[0], 1.0 + _height(num_groups)))
        grid = {"width_ratios": [4.4, 1, 1], "wspace": 0.03}
        heat, often, many = figure.subplots(1, 3, sharey=True, gridspec_kw=grid)
        heat.imshow(
            np.searchsorted(levels, layers.intervals.numpy()).T,
            aspect="auto",
            cmap=ListedColormap([_shade(level, layers.strategy.phi) for level in levels]),
            vmin=-0.5,
            vmax=len(levels) - 0.5,
            extent=(0.5, num_rounds + 0.5, num_groups - 0.5, -0.5),
            interpolation="none",
        )
        heat.set(xlabel="Round")
        heat.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        _draw_syncs(often, many, layers)
        for axes in (heat, often, many):
            axes.grid(visible=False, axis="y")
        heat.grid(visible=False)
        _name_groups(heat, list(layers.sizes))
        handles = [Patch(facecolor=_shade(level, layers.strategy.phi), label=f"{level}") for level in levels]
        title = {"title": "Interval in rounds", "title_fontsize": 8, "alignment": "left"}
        figure.legend(handles=handles, loc="outside upper left", ncols=12, fontsize=8, handlelength=1.2, **title)
        return figure


def discrepancy_by_group(layers: Layers) -> Figure:
    """Unit discrepancy of each group: the last value, and the range over the run; at least one must be above zero.

    A logarithmic axis has no zero, so groups that end with zero have a hollow mark at the left edge.
    """
    values = layers.unit_discrepancy.numpy()
    last, rows = values[-1], np.arange(values.shape[1])
    known = np.where(values > 0, values, np.nan)
    moved = (values > 0).any(axis=0)
    edge = np.nanmin(known) / 2
    with style():
        figure = blank((SIZE[0], 0.7 + _height(len(rows))))
        axes = figure.subplots()
        lowest, highest = np.nanmin(known[:, moved], axis=0), np.nanmax(known[:, moved], axis=0)
        axes.hlines(rows[moved], lowest, highest, color=SERIES[0], alpha=0.35, linewidth=3.0)
        size = 4.5 if len(rows) <= MAX_NAMES else 2.0
        axes.plot(last[last > 0], rows[last > 0], "o", color=SERIES[0], markersize=size)
        zeros = rows[last == 0]
        axes.plot(np.full(len(zeros), edge), zeros, "o", color=SERIES[0], markersize=size, markerfacecolor="none")
        axes.set(xlabel="Unit discrepancy", xscale="log", ylim=(len(rows) - 0.5, -0.5))
        subdivisions = (1,) if np.nanmax(known) > 30 * edge else (1, 2, 5)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=subdivisions, numticks=7))
        axes.xaxis.set_major_formatter(FuncFormatter(_power))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _name_groups(axes, list(layers.sizes))
        return figure


def discrepancy_curves(choice: IntervalChoice) -> Figure:
    """delta_l and 1 - lambda_l against l, from l = 0 on, with their crossing marked (FedLAMA's Fig. 1)."""
    delta = np.concatenate([[0.0], choice.curves.delta.numpy()])
    rest = np.concatenate([[1.0], choice.curves.one_minus_lambda.numpy()])
    with style():
        figure, axes = single()
        axes.plot(delta, color=SERIES[0], label="δ: discrepancy of the first l groups")
        axes.plot(
            rest, color=SERIES[1], linestyle=(0, (3.7, 1.6)), label="1 \N{MINUS SIGN} λ: parameters of the others"
        )
        _mark_crossing(axes, delta, rest)
        axes.set(xlabel="Groups l, by ascending unit discrepancy", ylabel="Share (%)", ylim=(-0.02, 1.02))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=1, fontsize=8)
        return figure


def crossing(delta: np.ndarray, rest: np.ndarray) -> tuple[float, float]:
    """The point where a rising and a falling curve over 0, 1, 2, ... cross, with linear interpolation.

    >>> crossing(np.array([0.0, 0.25, 1.0]), np.array([1.0, 0.75, 0.0]))
    (1.3333333333333333, 0.5)
    """
    first = int(np.flatnonzero(delta >= rest)[0])
    before, after = rest[first - 1] - delta[first - 1], delta[first] - rest[first]
    part = before / (before + after)
    return float(first - 1 + part), float(delta[first - 1] + part * (delta[first] - delta[first - 1]))


def _mark_crossing(axes: Axes, delta: np.ndarray, rest: np.ndarray) -> None:
    """Marks the crossing of the curves with a dot and the first l at which delta is not below."""
    x, y = crossing(delta, rest)
    first, height = int(np.flatnonzero(delta >= rest)[0]), y + 0.4 * (1 - y)
    numbers = np.arange(len(delta))
    middle = (np.interp(height, delta, numbers) + np.interp(-height, -rest, numbers)) / 2
    axes.plot([x], [y], "o", color=INK, markersize=5, zorder=3)
    axes.annotate(
        f"l = {first}, {100 * y:.0f} %",
        (x, y),
        xytext=(middle, height),
        ha="center",
        color=INK,
        fontsize=8,
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.7},
    )


def _draw_syncs(often: Axes, many: Axes, layers: Layers) -> None:
    """Draws bars of the rounds and scalars averaged by group; faint bars show the maximum."""
    rows, counts = np.arange(len(layers.sizes)), layers.num_syncs.numpy()
    sizes = np.array(list(layers.sizes.values()))
    height = 0.7 if len(rows) <= MAX_NAMES else 1.0
    for axes, widths, most in (
        (often, counts, np.full(len(rows), layers.num_counted)),
        (many, counts * sizes, layers.num_counted * sizes),
    ):
        axes.barh(rows, most, height=height, color=MUTED, alpha=0.2)
        axes.barh(rows, widths, height=height, color=SERIES[0])
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True, min_n_ticks=1))
    often.set(xlabel="Averaged in rounds")
    many.set(xlabel="Scalars averaged")
    many.xaxis.set_major_formatter(FuncFormatter(_with_prefix))


def _power(number: float, _: object) -> str:
    """One digit and an exponent, in shorter form than Python's: 2e-06 is 2e-6."""
    digit, _, exponent = f"{number:.0e}".partition("e")
    return f"{digit}e{int(exponent)}"


def _with_prefix(number: float, _: object) -> str:
    """A large number for an axis: 1500000 is 1.5M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:g}{name}"
    return f"{number:g}"


def _name_groups(axes: Axes, names: list[str]) -> None:
    """Labels the rows from top to bottom with names or, if there are too many, with numbers in the model's order."""
    axes.tick_params(axis="y", length=0)
    if len(names) <= MAX_NAMES:
        axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    else:
        axes.set_ylabel("Group, in the order of the model")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _height(num_groups: int) -> float:
    """The height of the rows in inches."""
    return min(_MAX_HEIGHT, max(1.0, _ROW * num_groups))


def _shade(interval: int, phi: int) -> tuple[float, float, float, float]:
    """The colour of an interval; longer intervals are stronger."""
    divisors = [divisor for divisor in range(1, phi + 1) if phi % divisor == 0]
    strength = divisors.index(interval) / max(1, len(divisors) - 1)
    red, green, blue, _ = to_rgba(SERIES[0])
    return red, green, blue, 0.15 + 0.85 * strength
