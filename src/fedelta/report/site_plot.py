"""The strip of a deployed run: one row per site, one column per round, coloured by what the site did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fedelta.federation.records import SiteState
from fedelta.record.history import History
from fedelta.report.drawing import GRID, MUTED, SERIES, SIZE, blank, style
from fedelta.report.plots import shortened

# Blue for what is well, warm colours for what is not; late and busy are one thing, in two rounds.
_COLORS: Mapping[str, str] = {
    "took part": SERIES[0],
    "not asked": SERIES[5],
    "late": SERIES[4],
    "busy": SERIES[3],
    "away": MUTED,
    "refused": SERIES[1],
    "failed": SERIES[2],
}


def attendance(run: History) -> Figure:
    """What each site did in each round."""
    states = [
        {entry["site"]: entry["state"] for entry in record["sites"]} for record in run.rounds if "sites" in record
    ]
    rounds = [record["round"] for record in run.rounds if "sites" in record]
    names = sorted({name for in_round in states for name in in_round})
    with style():
        figure = blank((2 * SIZE[0], 0.75 + 0.3 * len(names)))
        axes = figure.subplots()
        axes.set_facecolor(GRID)
        edges = np.append(np.array(rounds) - 0.5, rounds[-1] + 0.5)
        used = [state for state in get_args(SiteState) if any(state in in_round.values() for in_round in states)]
        for row, name in enumerate(names):
            for state in used:
                is_so = np.array([float(in_round.get(name) == state) for in_round in states])
                axes.stairs(row - 0.4 + 0.8 * is_so, edges, baseline=row - 0.4, fill=True, color=_COLORS[state])
        axes.set_yticks(range(len(names)), [shortened(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(edges[0], edges[-1])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        axes.set(xlabel="Round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        handles = [Patch(color=_COLORS[state], label=state) for state in used]
        # On the left: a narrow screen shows this end of the figure first.
        figure.legend(handles=handles, loc="outside upper left", ncols=7, fontsize=8)
        return figure
