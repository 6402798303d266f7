"""What happens to a second federation while the other tests run: most of the time it waits for the clock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.harness import Federation, Run
from tests.deploy.recipes import HAMBURG, KIEL, RECIPE
from tests.deploy.troubles import network

CUT_SECONDS = 30
CUT = ["client.local_steps=60"]
DEAD = [
    "strategy.num_rounds=8", "strategy.clients_per_round=6", "deployment.min_grace_seconds=3",
    "deployment.grace_factor=1.5", "deployment.wait_seconds=3",
]  # fmt: skip


@dataclass(frozen=True)
class Happened:
    """Two runs, and what was seen.

    Args:
        folder: of the federation.
        cut: a run in which kiel's network was cut for half a minute while it trained.
        dead: a run in which kiel was killed after round 2 and never came back.
        seconds: from that to the end of the run.
        page: of that run.
    """

    folder: Path
    cut: Run
    dead: Run
    seconds: float
    page: str


def happen(folder: Path) -> Happened:
    """Lets it happen; the server and hamburg are in one network namespace, kiel is in another."""
    with network() as wire, Federation(folder, host=wire.address, at_server=wire.at_server) as federation:
        federation.start_server()
        places: Mapping[str, list[str]] = {"hamburg": wire.at_server, "kiel": wire.at_site}
        for name, settings in (("hamburg", HAMBURG), ("kiel", KIEL)):
            federation.add_site(name, settings, prefix=places[name])
            federation.register(name)
            federation.sites[name].run()
        kiel = federation.sites["kiel"]
        cut = federation.deploy(RECIPE, "cut", *CUT)
        cut.wait_for_round(1)
        cut.in_training(kiel, wire.cut)
        time.sleep(CUT_SECONDS)
        wire.mend()
        cut.wait()
        dead = federation.deploy(RECIPE, "dead", *DEAD)
        dead.wait_for_round(2)
        kiel.kill()
        begin = time.monotonic()
        dead.wait()
        seconds = time.monotonic() - begin
        federation.command("report", "report", dead.path, "--out", folder / "dead.html")
        return Happened(folder, cut, dead, seconds, (folder / "dead.html").read_text())
