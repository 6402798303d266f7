"""Weights & Biases, offline; `wandb sync RUN/tracking/wandb/offline-run-*` uploads a run.

An offline run cannot be continued, so a resumed run is written again from the first round, under the same id.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedelta.tracking.base import TrackedRun

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run


@dataclass(frozen=True)
class Wandb:
    """An offline run.

    Args:
        run: result of `wandb.init`.
    """

    run: Run

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self.run.log(dict(values), step=round)

    def finish(self, summary: Mapping[str, float]) -> None:
        """See `Tracker.finish`."""
        self.run.summary.update(dict(summary))
        self.run.finish()

    def close(self) -> None:
        """See `Tracker.close`."""
        self.run.finish(exit_code=1)


def open_wandb(run: TrackedRun) -> Wandb:
    """Opens the run in `wandb/offline-run-TIME-ID`, which then has only its parameters."""
    # Switches error reports off; read when wandb starts, even offline.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    run.directory.mkdir(parents=True, exist_ok=True)  # wandb uses a temporary directory if this one is missing
    for earlier in (run.directory / "wandb").glob(f"offline-run-*-{run.id}"):
        shutil.rmtree(earlier)
    settings = wandb.Settings(
        console="off",  # no copy of the terminal's output, code or machine data
        silent=True,
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
    )
    return Wandb(
        wandb.init(
            mode="offline",
            project=run.project,
            name=run.name,
            id=run.id,
            dir=str(run.directory),
            config=dict(run.parameters),
            settings=settings,
            reinit="create_new",
        )
    )
