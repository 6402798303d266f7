"""Run directories of deployments: synthetic runs whose records, partition and configuration have sites.

python -m tests.report.deployed OUT    writes runs and reports below OUT
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.report.synthetic import Shape, make_run, rewrite

from fedelta.data.clients import Clients
from fedelta.federation.records import Attendance, SiteState
from fedelta.record.files import read_json, to_json
from fedelta.record.ledger import Ledger
from fedelta.record.partition import roster_record
from fedelta.record.rundir import CONFIG, PARTITION, RunDirectory
from fedelta.record.runlog import summary
from fedelta.record.sites import AT_THE_END
from fedelta.tasks.classification import ACCURACY

NUM_EXAMPLES = 20  # of each client
REASONS = {
    "away": "not connected",
    "late": "no answer within 90 s",
    "refused": "its model is another one: resnet-micro",
}
States = Mapping[str, Sequence[SiteState]]


def make_deployed(
    path: Path, states: States, *, min_sites: int = 2, own: Mapping[str, float] | None = None
) -> RunDirectory:
    """A finished run with these states of each site in each round; `own` are accuracies that sites have measured."""
    names, num_rounds = sorted(states), len(next(iter(states.values())))
    run = make_run(path, Shape(num_rounds=num_rounds, num_finished=num_rounds, num_clients=12, clients_per_round=6))
    with (path / CONFIG).open("a") as file:
        file.write(f"\n[deployment]\nmin_sites = {min_sites}\n")
    site_of = {client: names[client % len(names)] for client in range(12)}
    sites = {
        name: {"clients": [[client, client, NUM_EXAMPLES] for client, site in site_of.items() if site == name]}
        for name in names
    }
    (path / PARTITION).write_text(to_json(roster_record(sites, Clients.of(range(12)))))
    records = run.rounds.read()
    for record in records:
        record["sites"] = [vars(_attendance(name, states[name], record, site_of)) for name in names]
        record["num_examples"] = sum(entry["num_examples"] for entry in record["sites"])
    rewrite(run, records)
    content = read_json(run.summary)
    sizes_of_model = {key: content[key] for key in ("tuned_parameters", "total_parameters")}
    details = {AT_THE_END: measures_at_the_end(own)} if own else None
    ledger, timings = Ledger.read(run.ledger), run.timings.read()
    run.write_summary(
        summary(records, timings, ledger, ACCURACY, sizes_of_model, details=details, min_sites=min_sites)
    )  # fmt: skip
    return run


def measures_at_the_end(own: Mapping[str, float]) -> dict[str, Any]:
    return {
        name: {"measures": {"accuracy": value, "loss_nats": 1 - value}, "num_test_examples": 90}
        for name, value in own.items()
    }


def _attendance(
    name: str, states: Sequence[SiteState], record: Mapping[str, Any], site_of: Mapping[int, str]
) -> Attendance:
    place = record["round"] - 1
    state, asked = states[place], sum(site_of[client] == name for client in record["cohort"])
    since = max((round for round in range(place) if states[round] != state), default=-1) + 2
    took_part = state == "took part"
    return Attendance(
        name,
        state,
        f"2026-11-28T13:{since:02}:07+00:00",
        since,
        REASONS.get(state, ""),
        num_asked=asked,
        num_accepted=asked if took_part else 0,
        num_examples=NUM_EXAMPLES * asked if took_part else 0,
        downlink_bytes=60_000 if took_part else 0,
        uplink_bytes=61_000 if took_part else 0,
        seconds=6.5 if took_part else None,
    )


GOOD: list[SiteState] = ["took part"] * 30
CUT: list[SiteState] = [*GOOD[:9], *(["away"] * 12), *GOOD[:9]]
SLOW: list[SiteState] = [*GOOD[:20], "late", "busy", *GOOD[:6], "refused", "refused"]


def main(out: Path) -> None:
    """Writes runs and their pages."""
    from fedelta.report.writing import write_report

    own = {"berlin": 0.91, "hamburg": 0.84, "universitätsklinikum-freiburg-ambulanz": 0.88}
    runs = [
        make_deployed(out / "good", {"berlin": GOOD, "hamburg": GOOD}, own={"berlin": 0.91, "hamburg": 0.84}),
        make_deployed(
            out / "cut",
            {"berlin": GOOD, "hamburg": CUT, "universitätsklinikum-freiburg-ambulanz": SLOW},
            min_sites=3,
            own=own,
        ),
        make_deployed(out / "two rounds", {"berlin": GOOD[:2], "hamburg": SLOW[20:22]}),
    ]
    for run in runs:
        write_report([run.path], out / f"{run.path.name}.html")
    write_report([run.path for run in runs], out / "all.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
