"""This side of `deployment.py`: a server and sites of fedelta, and the demo's recipe over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.stock_side import Peaks, Timed
from benchmarks.wire import Meter
from tests.deploy.harness import Federation

NUM_CLIENTS = 64  # of the demo


@dataclass
class Ours:
    """A deployed federation whose sites reach the server through a relay.

    Args:
        folder: new.
        recipe: text of the recipe.
        settings: overrides of the recipe, `section.key=value`.
        num_sites: the clients are divided evenly among them.
    """

    folder: Path
    recipe: str
    settings: Sequence[str]
    num_sites: int
    federation: Federation = field(init=False)

    def __enter__(self) -> Ours:
        self.federation = Federation(self.folder)
        server = self.federation.start_server()
        self.meter = Meter(self.federation.port)
        self.meter.__enter__()
        self.federation.port = self.meter.port
        share = NUM_CLIENTS // self.num_sites
        for number in range(self.num_sites):
            name, first = f"site{number}", number * share
            self.federation.add_site(name, {"clients": f"{first}-{first + share - 1}", "data": {"source": "digits"}})
            self.federation.register(name)
            self.federation.sites[name].run()
        self.programs = [server, *(site.program for site in self.federation.sites.values() if site.program)]
        return self

    def __exit__(self, *_: object) -> None:
        self.federation.programs.end()
        self.meter.__exit__(None, None, None)

    def run(self, turn: int) -> Timed:
        """Deploys the recipe and waits for its end."""
        before = self.meter.total
        settings = [*self.settings, "runtime.name=flower", f"deployment.min_sites={self.num_sites}"]
        with Peaks(self.programs) as peaks:
            run = self.federation.deploy(self.recipe, f"turn{turn}", *settings).wait(600)
        lines = (run.path / "timings.jsonl").read_text().splitlines()
        seconds = [json.loads(line)["wall_seconds"] for line in lines]
        return Timed(
            seconds[1:],
            self.meter.total - before,
            run.summary["final_accuracy"],
            peaks.highest,
            run.summary["uplink_bytes"] + run.summary["downlink_bytes"],
        )
