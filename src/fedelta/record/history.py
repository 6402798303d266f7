"""Reads a finished or unfinished run from its directory, for the report and its plots."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from fedelta.errors import PluginError, RunError
from fedelta.record.amending import changes_of
from fedelta.record.audit import End, misfits
from fedelta.record.compute import Compute, read_compute
from fedelta.record.details import read_details
from fedelta.record.files import Record, read_json
from fedelta.record.ledger import Ledger
from fedelta.record.partition import Partition, read_partition
from fedelta.record.privacy import STOPPED
from fedelta.record.promise import Promise, read_promise
from fedelta.record.rounds import checked_rounds
from fedelta.record.rundir import (
    CITATIONS,
    CONFIG,
    CONFUSION,
    ENVIRONMENT,
    EXITS,
    LEDGER,
    MODEL,
    PARTITION,
    PERSONALIZATION,
    PRIVACY,
    SUMMARY,
    RunDirectory,
)
from fedelta.record.runlog import best_of, by_exit, full_model_bytes, relative_cost, wall_seconds
from fedelta.record.sites import min_sites_of, too_few_sites
from fedelta.tasks.base import Measure, Task
from fedelta.tasks.choice import task_of
from fedelta.tasks.details import Details


@dataclass(frozen=True)
class History:
    """The content of a run directory.

    Args:
        name: of the run in legends.
        path: of the run directory.
        config: the resolved configuration.
        rounds: lines of `rounds.jsonl`.
        timings: lines of `timings.jsonl`.
        ledger: totals of all payloads.
        environment: content of `environment.json`.
        model: `tuned_parameters`, `total_parameters` and the scalars of each of `groups`, as far as known.
        summary: content of `summary.json`; empty while the run is unfinished.
        partition: examples of each class by client, if known.
        details: measures of the finished model and of its parts, if known.
        compute: the cost of an answer at each exit, if measured.
        personalization: content of `personalization.json`; empty if it does not exist.
        citations: BibTeX.
        misfits: one sentence per inconsistency in the directory (audit.py).
        promise: what the run guarantees; None without privacy.
    """

    name: str
    path: Path
    config: Mapping[str, Any]  # Any: TOML values
    rounds: Sequence[Record]
    timings: Sequence[Record]
    ledger: Ledger
    environment: Record
    model: Record
    summary: Record
    partition: Partition | None
    details: Details | None
    compute: Compute | None
    personalization: Record
    citations: str
    misfits: tuple[str, ...] = ()
    promise: Promise | None = None

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return bool(self.summary)

    @cached_property
    def evaluated(self) -> list[Record]:
        """The rounds with measures."""
        return [record for record in self.rounds if record["measures"] is not None]

    @cached_property
    def task(self) -> Task:
        """The task of the run."""
        return task_of(self.config)

    @property
    def primary(self) -> Measure:
        """The primary measure of the task."""
        return self.task.primary

    @property
    def has_intervals(self) -> bool:
        """Whether groups travel at different intervals."""
        return any("interval_rounds" in record for record in self.rounds)

    @cached_property
    def full_syncs(self) -> frozenset[int]:
        """The rounds that averaged all groups."""
        return frozenset(record["round"] for record in self.rounds if record.get("synced_fraction", 1.0) == 1.0)

    @property
    def has_partial_syncs(self) -> bool:
        """Whether some rounds averaged only some of the groups."""
        return self.has_intervals and len(self.full_syncs) < len(self.rounds)

    @property
    def relative_cost(self) -> float | None:
        """See `runlog.relative_cost`."""
        return relative_cost(self.rounds, self.promise)

    @cached_property
    def curve(self) -> list[tuple[int, float]]:
        """Round and primary measure, of every evaluated round."""
        return [(record["round"], record["measures"][self.primary.name]) for record in self.evaluated]

    @cached_property
    def shares(self) -> tuple[Measure, ...]:
        """The fractions that a run has where the primary measure is none, such as how many answers are right."""
        known = {name for record in self.evaluated for name in record["measures"]}
        known |= set() if self.details is None else self.details.measures.keys()
        fractions = [measure for measure in self.task.measured.values() if measure.is_fraction]
        return () if self.primary.is_fraction else tuple(measure for measure in fractions if measure.name in known)

    def curve_of(self, measure: Measure) -> list[tuple[int, float]]:
        """Round and measure, of every evaluated round that has it."""
        return [
            (record["round"], record["measures"][measure.name])
            for record in self.evaluated
            if measure.name in record["measures"]
        ]

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Round and loss, of every evaluated round."""
        return [(record["round"], record["measures"][self.task.loss.name]) for record in self.evaluated]

    @property
    def train_losses(self) -> list[tuple[int, float]]:
        """Round and mean training loss of the clients, of every round that has one."""
        key = f"train_{self.task.loss.name}"
        return [(record["round"], record[key]) for record in self.rounds if record[key] is not None]

    @property
    def final(self) -> float | None:
        """The primary measure in the last evaluated round."""
        return self.curve[-1][1] if self.curve else None

    @property
    def best(self) -> float | None:
        """The best value of the primary measure over all rounds."""
        return best_of([value for _, value in self.curve], self.primary)

    @property
    def by_exit(self) -> list[float] | None:
        """The primary measure at each exit; see `runlog.by_exit`."""
        return by_exit(self.rounds, self.primary)

    @property
    def mean_over_exits(self) -> float | None:
        """The mean of `by_exit`; None without exits."""
        return fmean(self.by_exit) if self.by_exit else None

    @property
    def measured_on(self) -> str:
        """The evaluated set, as a word before the labels of measures."""
        return str(self.value("data.evaluate_on") or "test")

    @property
    def full_model_bytes(self) -> int | None:
        """Bytes of the same payloads with the whole model in float32; None if its size is unknown."""
        total = self.model.get("total_parameters")
        return None if total is None else full_model_bytes(total, self.ledger.num_transfers)

    @property
    def full_round_bytes(self) -> int | None:
        """Bytes of a round with the whole model in float32, both directions; None before the first."""
        total = self.model.get("total_parameters")
        size = self.cohort_size
        return full_model_bytes(total, 2 * size) if total and size and self.rounds else None

    @property
    def draws_by_chance(self) -> bool:
        """Whether cohorts are Poisson samples, which differ in size and may be empty."""
        return bool(self.value("strategy.sampling") == "poisson")

    @property
    def cohort_size(self) -> int | None:
        """Number of clients of the first round; the expected number where cohorts differ in size; None if unknown."""
        if self.rounds and not self.draws_by_chance:
            return len(self.rounds[0]["cohort"])
        planned = self.value("strategy.clients_per_round")
        return planned if isinstance(planned, int) else None

    @property
    def bytes_per_client_round(self) -> float | None:
        """Mean payload bytes of one client in one round, both directions; None before the first."""
        num_payloads = self.ledger.transfers
        if not num_payloads["down"] or not num_payloads["up"]:
            return None
        return self.ledger.downlink_bytes / num_payloads["down"] + self.ledger.uplink_bytes / num_payloads["up"]

    @property
    def peak_memory_bytes(self) -> int | None:
        """The highest resident memory in the timings; None without timings."""
        return max((timing.get("peak_memory_bytes") or 0 for timing in self.timings), default=None)

    @property
    def wall_seconds(self) -> float | None:
        """Seconds of all rounds so far; None if they were lost."""
        return wall_seconds(self.timings, len(self.rounds))

    @property
    def epsilon(self) -> float | None:
        """Epsilon after the last round; None without privacy, or where nothing is guaranteed."""
        return self.rounds[-1].get("epsilon") if self.rounds else None

    @property
    def stopped(self) -> str:
        """The sentence with which the privacy budget ended the run; empty if it did not."""
        return str(self.summary.get(STOPPED, ""))

    @cached_property
    def departures(self) -> list[str]:
        """In what the run differs from one that had the settings from the start with which it later went on."""
        return [
            f"After round {change['round']} the run went on with other settings: {departure}."
            for change in changes_of(self.path)
            for departure in change["departures"]
        ]

    @cached_property
    def too_few_sites(self) -> str:
        """A sentence on rounds with fewer sites than the run should have; empty if there are none."""
        return too_few_sites(self.rounds, min_sites_of(self.config))

    def client_label(self, client_id: int) -> str:
        """The number of a client and its name, if it has one, for pages."""
        return str(client_id) if self.partition is None else self.partition.label(client_id)

    def value(self, path: str) -> object:
        """The value at a dotted path such as `tuning.name`, or None."""
        value: object = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def read_histories(paths: Sequence[Path]) -> list[History]:
    """One history per run directory; runs with equal names are called by their paths.

    Raises:
        RunError: runs cannot be read (names each, with the reason), or their primary measures differ.
    """
    histories, problems, hints = [], [], list[str]()
    names = [path.resolve().name for path in paths]
    for path, name in zip(paths, names, strict=True):
        try:
            histories.append(_read(path, name if names.count(name) == 1 else str(path)))
        except (RunError, PluginError) as error:
            problems.append(error.message)
            hints.append(error.hint or "")
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        hint = " ".join(dict.fromkeys(filter(None, hints))) or None
        raise RunError(f"{len(problems)} of {len(paths)} runs cannot be reported:{lines}", hint=hint)
    _refuse_mixed(histories)
    return histories


def _refuse_mixed(histories: Sequence[History]) -> None:
    """Raises if the runs have different primary measures, which share no axis and no column."""
    names: dict[Measure, list[str]] = {}
    for run in histories:
        names.setdefault(run.primary, []).append(repr(run.name))
    if len(names) > 1:
        by_measure = "; ".join(f"{measure.label} of {', '.join(runs)}" for measure, runs in names.items())
        raise RunError(
            f"the runs go by different measures: {by_measure}.", hint="report those of one measure at a time."
        )


def _read(path: Path, name: str) -> History:
    run = RunDirectory.open(path)
    summary = _json_if_there(path / SUMMARY)
    model = _sizes(path / MODEL) or summary
    config = _toml(path / CONFIG)
    task = _task(path / CONFIG, config)
    promise = read_promise(path / PRIVACY)
    rounds = checked_rounds(run, task, len(model.get("groups") or ()), promise)
    num_exits = len(by_exit(rounds, task.primary) or ())
    ledger = Ledger.read(path / LEDGER)
    end = End(
        summary=summary,
        details=read_details(path / SUMMARY, summary, path / CONFUSION),
        personalization=_json_if_there(path / PERSONALIZATION),
        promise=promise,
    )
    return History(
        name=name,
        path=path,
        config=config,
        rounds=rounds,
        timings=run.timings.readable(),
        ledger=ledger,
        environment=read_json(path / ENVIRONMENT),
        model=model,
        summary=summary,
        partition=read_partition(path / PARTITION, task.stratum),
        details=end.details,
        compute=read_compute(path / EXITS, num_exits) if (path / EXITS).exists() else None,
        personalization=end.personalization,
        citations=(path / CITATIONS).read_text(encoding="utf-8", errors="replace"),
        misfits=misfits(run, config, rounds, ledger, end=end, primary=task.primary),
        promise=promise,
    )


def _json_if_there(path: Path) -> Record:
    return read_json(path) if path.exists() else {}


def _sizes(path: Path) -> Record:
    """Content of `model.json`."""
    sizes = _json_if_there(path)
    counts = [sizes[key] for key in ("tuned_parameters", "total_parameters") if key in sizes]
    groups = sizes.get("groups", {})
    if not isinstance(groups, dict) or not all(isinstance(number, int) for number in [*counts, *groups.values()]):
        raise RunError(f"{str(path)!r} does not hold numbers of parameters, those of `groups` among them.")
    return sizes


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{str(path)!r} cannot be read: {error}.") from error


def _task(path: Path, config: Mapping[str, Any]) -> Task:
    try:
        return task_of(config)
    except ValueError as error:
        raise RunError(f"{str(path)!r}: `[task]` is not valid: {error}.") from error
