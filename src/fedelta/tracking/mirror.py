"""Copies the records of a run to trackers.

The records are read back from the run directory, so a tracker gets the same values as a resumed run and the report.
A tracker that fails is dropped with a warning, and the run continues.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedelta.config import Config, read_table
from fedelta.durable import write_atomic
from fedelta.federation.records import RoundOutcome
from fedelta.record.files import Record
from fedelta.record.ledger import Ledger
from fedelta.record.privacy import FROM_COHORTS
from fedelta.record.rundir import RunDirectory
from fedelta.tasks.base import Measure
from fedelta.tracking.base import Parameter, TrackedRun, Tracker
from fedelta.tracking.table import TOOLS

logger = logging.getLogger("fedelta")

_MIB = 2**20
_FOLDER = "tracking"


class Mirror:
    """The trackers of one run.

    Args:
        run: whose records are mirrored.
        config: of the run.
    """

    def __init__(self, run: RunDirectory, config: Config) -> None:
        self._run = run
        self._loss, self._tells_cohorts = config.task.loss, config.privacy.unit != "client"
        self._rounds_done = 0
        self._trackers: dict[str, Tracker] = {}
        for name in dict.fromkeys(config.tracking.tools):
            self._guard(name, self._open, name, config)

    def update(self) -> None:
        """Logs the rounds that were recorded since the last call."""
        if not self._trackers:
            return
        # Reading the whole file each time takes milliseconds, even for long runs.
        timings = {timing["round"]: timing for timing in self._run.timings.readable()}  # some lines may be missing
        pairs = [(record, timings.get(record["round"], {})) for record in self._run.read_rounds()]
        for record, timing in pairs[self._rounds_done :]:
            values = round_values(record, timing, self._loss, tells_cohorts=self._tells_cohorts)
            for name, tracker in list(self._trackers.items()):
                self._guard(name, tracker.log, record["round"], values)
        self._rounds_done = len(pairs)

    def finish(self, summary: Record) -> None:
        """Logs the key figures, and marks the run as finished."""
        withheld = frozenset() if self._tells_cohorts else FROM_COHORTS
        numbers = {key: value for key, value in summary.items() if key not in withheld} | summary.get("measures", {})
        values = {f"summary/{key}": float(value) for key, value in numbers.items() if _is_number(value)}
        for name, tracker in list(self._trackers.items()):
            self._guard(name, tracker.finish, values)
        self._trackers.clear()

    def close(self) -> None:
        """Closes the trackers of an unfinished run."""
        for name, tracker in list(self._trackers.items()):
            self._guard(name, tracker.close)
        self._trackers.clear()

    def before(self, on_round: Callable[[RoundOutcome, Ledger], None] | None) -> Callable[[RoundOutcome, Ledger], None]:
        """A callback that updates the trackers after each round, and then calls `on_round`."""

        def update(outcome: RoundOutcome, ledger: Ledger) -> None:
            self.update()
            if on_round is not None:
                on_round(outcome, ledger)

        return update

    def _open(self, name: str, config: Config) -> None:
        self._trackers[name] = TOOLS[name].open(tracked_run(self._run, config))

    def _guard(self, name: str, action: Callable[..., None], *args: object) -> None:
        try:
            action(*args)
        except Exception as error:  # noqa: BLE001 no error of a tracker may stop the training
            self._trackers.pop(name, None)
            logger.warning(
                "tracking with %s ended: %s: %s. The run continues; once that is fixed, `fedelta resume %s` tracks the "
                "whole run from its records.",
                name,
                type(error).__name__,
                error,
                self._run.path,
            )


@contextmanager
def mirrored(run: RunDirectory, config: Config) -> Iterator[Mirror]:
    """Context manager with a mirror that has all rounds so far; always closes it."""
    mirror = Mirror(run, config)
    try:
        mirror.update()
        yield mirror
    finally:
        mirror.close()


def round_values(record: Record, timing: Record, loss: Measure, *, tells_cohorts: bool = True) -> dict[str, float]:
    """The values of a round for trackers; missing values are left out.

    Names of the loss say where it was measured, such as `train_loss_nats` and `test_loss_nats`; other measures are from
    the test set.

    Args:
        record: a line of `rounds.jsonl`.
        timing: the line of `timings.jsonl` for the same round.
        loss: what the task minimises.
        tells_cohorts: whether the values may tell how many clients took part: not if clients are protected, since a
            tracker may be somebody else's.
    """
    measures = record["measures"] or {}
    values = {f"test_{name}" if name == loss.name else name: value for name, value in measures.items()}
    values[f"train_{loss.name}"] = record[f"train_{loss.name}"]
    if tells_cohorts:
        values |= {f"{name}_mib": record[f"{name}_bytes"] / _MIB for name in ("uplink", "downlink", "cumulative")}
        values |= {"num_rejections": len(record["rejections"]), "wall_seconds": timing.get("wall_seconds")}
    values |= {key: record.get(key) for key in ("epsilon", "epsilon_rdp", "clipping_norm")}
    return {name: float(value) for name, value in values.items() if _is_number(value)}


def tracked_run(run: RunDirectory, config: Config) -> TrackedRun:
    """The description of a run for tools; the first call creates the id of the run."""
    folder = run.path.resolve() / _FOLDER
    directory = config.tracking.directory
    # From its file, so that a resumed run has the same parameters.
    parameters = {key: value for key, value in read_table(run.config).items() if key != "tracking"}
    return TrackedRun(
        name=folder.parent.name,
        id=_identity(folder / "id"),
        project=config.tracking.project,
        directory=folder if directory is None else Path(directory),
        parameters=flatten(parameters),
    )


def flatten(table: Mapping[str, object], prefix: str = "") -> dict[str, Parameter]:
    """Nested values by dotted keys; lists become JSON, None is left out.

    >>> flatten({"seed": 7, "tuning": {"r": 8, "modules": ["q", "v"], "alpha": None}})
    {'seed': 7, 'tuning.r': 8, 'tuning.modules': '["q", "v"]'}
    """
    flat: dict[str, Parameter] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float | bool):
            flat[f"{prefix}{key}"] = value
        elif value is not None:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat


def _identity(path: Path) -> str:
    """The id in the file `path`, which is created if it does not exist."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        # Not from the seed, because two runs of one configuration need different ids. No result depends on it.
        write_atomic(path, secrets.token_hex(4))
    return path.read_text(encoding="ascii")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
