"""The charts of the section "Privacy": epsilon and clipping norm by round, and what an epsilon bought."""

from __future__ import annotations

from collections.abc import Sequence

from fedelta.record.history import History
from fedelta.record.numbers import in_unit
from fedelta.report.charts import FAINT, ROUNDS, Axis, Curve, curves, of_measure
from fedelta.report.drawing import MUTED, Chart, Spec, style_of
from fedelta.report.plots import measured


def epsilon_by_round(runs: Sequence[History]) -> Chart:
    """Epsilon of all rounds so far (strong) and its bound by RDP (faint), with the largest that is allowed to each."""
    lines, limits, alone = [], dict[float, str](), len(runs) == 1
    for index, run in enumerate(runs):
        if run.promise is None:
            continue
        if run.promise.accountant == "pld":
            name = "by RDP" if alone else f"{run.name}, by RDP"
            lines.append(Curve(name, index, points(run, "epsilon_rdp"), opacity=FAINT))
        lines.append(Curve("accounted" if alone else run.name, index, points(run, "epsilon")))
        if run.promise.limit:
            # A limit that several runs share belongs to none of them.
            limits[run.promise.limit] = MUTED if run.promise.limit in limits or alone else style_of(index)[0]
    y = Axis("Epsilon so far", has_zero=True)
    return curves([line for line in lines if line.points], ROUNDS, y, _allowed(limits, y))


def measure_by_epsilon(runs: Sequence[History]) -> Chart:
    """The primary measure of the runs against the epsilon that was spent by then."""
    primary, lines = runs[0].primary, []
    for index, run in enumerate(runs):
        evaluated = dict(run.curve)
        curve = [(epsilon, evaluated[round]) for round, epsilon in points(run, "epsilon") if round in evaluated]
        if curve:
            lines.append(Curve(run.name, index, [(epsilon, in_unit(value, primary)) for epsilon, value in curve]))
    heights = [height for line in lines for _, height in line.points]
    return curves(lines, Axis("Epsilon so far", has_zero=True), of_measure(measured(runs), primary, heights))


def clipping_by_round(runs: Sequence[History]) -> Chart:
    """The clipping norm of every round, of runs in which it moves."""
    lines = [Curve(run.name, index, points(run, "clipping_norm")) for index, run in enumerate(runs) if is_adaptive(run)]
    return curves(lines, ROUNDS, Axis("Clipping norm", has_zero=True))


def is_adaptive(run: History) -> bool:
    """Whether the clipping norm moves from round to round."""
    return run.promise is not None and run.promise.clipping == "adaptive"


def points(run: History, key: str) -> list[tuple[int, float]]:
    """Round and value, of every round that has one."""
    return [(record["round"], value) for record in run.rounds if (value := record.get(key)) is not None]


def _allowed(limits: dict[float, str], y: Axis) -> list[Spec]:
    """Dotted lines at the largest epsilon that is allowed."""
    if not limits:
        return []
    rows = [{"y": limit, "color": color} for limit, color in sorted(limits.items())]
    mark = {"type": "rule", "strokeDash": [2, 3], "strokeWidth": 1.3}
    color = {"field": "color", "type": "nominal", "scale": None}
    tooltip = [{"field": "y", "title": "Largest epsilon allowed"}]
    return [
        {"data": {"values": rows}, "mark": mark, "encoding": {"y": y.encoding("y"), "color": color, "tooltip": tooltip}}
    ]
