"""The figures of the section "Privacy": epsilon and clipping norm by round, and what an epsilon bought."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedelta.record.history import History
from fedelta.record.numbers import in_unit
from fedelta.report.drawing import INK, MUTED, single, style
from fedelta.report.plots import limits, line, measured


def epsilon_by_round(runs: Sequence[History]) -> Figure:
    """Epsilon of all rounds so far (strong) and its bound by RDP (faint), with the largest that is allowed."""
    with style():
        figure, axes = single()
        for index, run in enumerate(runs):
            if run.promise is not None and run.promise.accountant == "pld":
                line(axes, points(run, "epsilon_rdp"), index, alpha=0.4)
            line(axes, points(run, "epsilon"), index)
        allowed = sorted({run.promise.limit for run in runs if run.promise is not None and run.promise.limit})
        for limit in allowed:
            axes.axhline(limit, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)))
        axes.set(xlabel="Round", ylabel="Epsilon so far")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.plot([], [], color=INK, label="accounted")
        axes.plot([], [], color=INK, alpha=0.4, label="by RDP")
        if allowed:
            axes.plot([], [], color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)), label="limit")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=8)
        return figure


def measure_by_epsilon(runs: Sequence[History]) -> Figure:
    """The primary measure of the runs against the epsilon that was spent by then."""
    with style():
        figure, axes = single()
        heights = []
        for index, run in enumerate(runs):
            evaluated = dict(run.curve)
            curve = [(epsilon, evaluated[round]) for round, epsilon in points(run, "epsilon") if round in evaluated]
            line(axes, [(epsilon, in_unit(value, run.primary)) for epsilon, value in curve], index)
            heights += [value for _, value in curve]
        axes.set(xlabel="Epsilon so far", ylabel=measured(runs))
        axes.set_xlim(left=0)
        limits(axes, heights, runs[0].primary)
        return figure


def clipping_by_round(runs: Sequence[History]) -> Figure:
    """The clipping norm of every round, of runs in which it moves."""
    with style():
        figure, axes = single()
        for index, run in enumerate(runs):
            if is_adaptive(run):
                line(axes, points(run, "clipping_norm"), index)
        axes.set(xlabel="Round", ylabel="Clipping norm")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        return figure


def is_adaptive(run: History) -> bool:
    """Whether the clipping norm moves from round to round."""
    return run.promise is not None and run.promise.clipping == "adaptive"


def points(run: History, key: str) -> list[tuple[int, float]]:
    """Round and value, of every round that has one."""
    return [(record["round"], value) for record in run.rounds if (value := record.get(key)) is not None]
