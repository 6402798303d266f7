"""The strip of a deployed run: one row per site, one column per round, coloured by what the site did."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import get_args

from fedelta.federation.records import SiteState
from fedelta.record.history import History
from fedelta.report.charts import FIT, Axis, keyed
from fedelta.report.drawing import MUTED, SERIES, WIDE, Chart
from fedelta.report.plots import named_rows

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


def attendance(run: History) -> Chart:
    """What each site did in each round; rounds in which it did the same are one bar."""
    records = [record for record in run.rounds if "sites" in record]
    states = [{entry["site"]: entry["state"] for entry in record["sites"]} for record in records]
    names = sorted({name for in_round in states for name in in_round})
    rows = []
    for name in names:
        numbered = zip((record["round"] for record in records), states, strict=True)
        for state, members in groupby(numbered, key=lambda pair: pair[1].get(name)):
            rounds = [round for round, _ in members]
            if state is not None:
                rows.append(
                    {"site": name, "state": state, "from": rounds[0] - 0.5, "to": rounds[-1] + 0.5}
                    | {"rounds": f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"{rounds[0]}"}
                )
    used = {state: _COLORS[state] for state in get_args(SiteState) if any(row["state"] == state for row in rows)}
    x = Axis("Round", is_whole=True, domain=(records[0]["round"] - 0.5, records[-1]["round"] + 0.5))
    encoding = {
        "y": named_rows("site", names),
        "x": x.encoding("from"),
        "x2": {"field": "to"},
        "color": keyed("", used, "state"),
        "tooltip": [
            {"field": "site", "title": "Site"},
            {"field": "state", "title": "State"},
            {"field": "rounds", "title": "Rounds"},
        ],
    }
    size = {"width": WIDE, "height": 75 + 26 * len(names), "autosize": FIT}
    return Chart(size | {"data": {"values": rows}, "mark": "bar", "encoding": encoding})
