"""A run read back from its directory, finished or not: what the report and its plots are made of."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from fedelta.data.clients import Clients, Name
from fedelta.errors import DataError, RunError
from fedelta.results.compute import Compute, read_compute
from fedelta.results.files import JsonLines, Record, read_json
from fedelta.results.ledger import Ledger
from fedelta.results.rundir import (
    CITATIONS,
    CONFIG,
    ENVIRONMENT,
    EXITS,
    LEDGER,
    MODEL,
    PARTITION,
    PERSONALIZATION,
    SUMMARY,
    RunDirectory,
)
from fedelta.results.runlog import accuracy_by_exit, full_model_bytes, relative_cost

_ROUND_FIELDS = frozenset(
    {"round", "accuracy", "test_loss_nats", "train_loss_nats", "cohort", "rejections", "cumulative_bytes"}
)
_BY_GROUP = ("interval_rounds", "unit_discrepancy")
_WINDOW_FIELDS = frozenset({"num_examples", "synced_fraction", *_BY_GROUP})


@dataclass(frozen=True)
class Partition:
    """Who holds what.

    Args:
        class_names: names of the classes, in the order of the counts.
        counts: client id to the number of its examples of each class.
        held_out: clients that no round asks; in no count.
        names: client id to what the client is called; of all clients, or of none.
    """

    class_names: tuple[str, ...]
    counts: Mapping[int, tuple[int, ...]]
    held_out: frozenset[int] = frozenset()
    names: Mapping[int, Name] = field(default_factory=dict)

    @property
    def clients(self) -> Clients:
        """Who all of them are."""
        return Clients.of({*self.counts, *self.held_out}, self.names)


@dataclass(frozen=True)
class History:
    """Everything that a run directory tells.

    Args:
        name: what the run is called in legends.
        path: of the run directory.
        config: the resolved configuration.
        rounds: lines of `rounds.jsonl`.
        timings: lines of `timings.jsonl`.
        ledger: totals of what travelled.
        environment: content of `environment.json`.
        model: `tuned_parameters`, `total_parameters` and the scalars of each of `groups`, as far as known.
        summary: content of `summary.json`; empty while the run is unfinished.
        partition: who holds what, if known.
        compute: what an answer from each exit costs, if it was measured.
        personalization: content of `personalization.json`; empty where nobody personalised.
        citations: BibTeX.
    """

    name: str
    path: Path
    config: Mapping[str, Any]  # Any: whatever TOML holds
    rounds: Sequence[Record]
    timings: Sequence[Record]
    ledger: Ledger
    environment: Record
    model: Record
    summary: Record
    partition: Partition | None
    compute: Compute | None
    personalization: Record
    citations: str

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.summary)

    @cached_property
    def evaluated(self) -> list[Record]:
        """The rounds with an accuracy."""
        return [record for record in self.rounds if record["accuracy"] is not None]

    @property
    def has_intervals(self) -> bool:
        """Whether each group travels at an interval of its own."""
        return any("interval_rounds" in record for record in self.rounds)

    @cached_property
    def full_syncs(self) -> frozenset[int]:
        """The rounds after which the server has a new value of everything."""
        return frozenset(record["round"] for record in self.rounds if record.get("synced_fraction", 1.0) == 1.0)

    @property
    def has_partial_syncs(self) -> bool:
        """Whether the server was, after some rounds, between two values of some of its groups."""
        return self.has_intervals and len(self.full_syncs) < len(self.rounds)

    @property
    def relative_cost(self) -> float | None:
        """See `runlog.relative_cost`."""
        return relative_cost(self.rounds)

    @property
    def final_accuracy(self) -> float | None:
        """Fraction, of the last evaluated round."""
        return self.evaluated[-1]["accuracy"] if self.evaluated else None

    @property
    def best_accuracy(self) -> float | None:
        """Fraction, the highest of all rounds."""
        return max((record["accuracy"] for record in self.evaluated), default=None)

    @property
    def accuracy_by_exit(self) -> list[float] | None:
        """See `runlog.accuracy_by_exit`."""
        return accuracy_by_exit(self.rounds)

    @property
    def mean_exit_accuracy(self) -> float | None:
        """Fraction, the mean over the exits in the last evaluated round; None without exits."""
        return fmean(self.accuracy_by_exit) if self.accuracy_by_exit else None

    @property
    def measured_on(self) -> str:
        """What accuracies were measured on, as a word before "accuracy"."""
        return str(self.value("data.evaluate_on") or "test").capitalize()

    @property
    def full_model_bytes(self) -> int | None:
        """What the same payloads would weigh with the whole model in float32; None if its size is unknown."""
        total = self.model.get("total_parameters")
        return None if total is None else full_model_bytes(total, self.ledger.num_transfers)

    @property
    def full_round_bytes(self) -> int | None:
        """What the first round would have sent with the whole model in float32, both directions."""
        total = self.model.get("total_parameters")
        return full_model_bytes(total, 2 * len(self.rounds[0]["cohort"])) if total and self.rounds else None

    @property
    def wall_seconds(self) -> float:
        """Time in all rounds so far."""
        return float(sum(timing.get("wall_seconds") or 0.0 for timing in self.timings))

    def value(self, path: str) -> object:
        """The value at a dotted path such as `tuning.name`, or None."""
        found: object = self.config
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


def read_histories(paths: Sequence[Path]) -> list[History]:
    """One history per run directory; runs of the same name are called by their path.

    Raises:
        RunError: some cannot be read; all of them are named, with the reason.
    """
    histories, problems = [], []
    names = [path.resolve().name for path in paths]
    for path, name in zip(paths, names, strict=True):
        try:
            histories.append(_read(path, name if names.count(name) == 1 else str(path)))
        except RunError as error:
            problems.append(error.message)
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise RunError(f"{len(problems)} of {len(paths)} runs cannot be reported:{lines}")
    return histories


def _read(path: Path, name: str) -> History:
    run = RunDirectory.open(path)
    summary = _json_if_there(path / SUMMARY)
    model = _json_if_there(path / MODEL) or summary
    rounds = _rounds(run.rounds, len(model.get("groups") or ()))
    compute = read_compute(path / EXITS, len(accuracy_by_exit(rounds) or ())) if (path / EXITS).exists() else None
    return History(
        name=name,
        path=path,
        config=_toml(path / CONFIG),
        rounds=rounds,
        timings=run.timings.read(),
        ledger=Ledger.read(path / LEDGER),
        environment=read_json(path / ENVIRONMENT),
        model=model,
        summary=summary,
        partition=_partition(path / PARTITION),
        compute=compute,
        personalization=_json_if_there(path / PERSONALIZATION),
        citations=(path / CITATIONS).read_text(encoding="utf-8", errors="replace"),
    )


def _json_if_there(path: Path) -> Record:
    return read_json(path) if path.exists() else {}


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{str(path)!r} cannot be read: {error}.") from error


def _rounds(log: JsonLines, num_groups: int) -> list[Record]:
    """The records; `num_groups` is 0 if nobody knows it."""
    records = log.read()
    in_windows = any("interval_rounds" in record for record in records)
    required = _ROUND_FIELDS | _WINDOW_FIELDS if in_windows else _ROUND_FIELDS
    for number, record in enumerate(records, start=1):
        missing = sorted(required - record.keys())
        if missing:
            raise RunError(f"{str(log.path)!r}, line {number}: lacks {', '.join(missing)}.")
        for key in _BY_GROUP if in_windows and num_groups else ():
            if not _is_by_group(record[key], num_groups):
                problem = f"`{key}` is not {num_groups} numbers, one for each of the `groups` in {MODEL}"
                raise RunError(f"{str(log.path)!r}, line {number}: {problem}.")
    _check_exits(log, records)
    return records


def _check_exits(log: JsonLines, records: Sequence[Record]) -> None:
    """Every evaluated round of a run with exits has an accuracy for each of them."""
    last = accuracy_by_exit(records)
    num_exits = len(last) if isinstance(last, list) else 0
    for number, record in enumerate(records, start=1):
        found = record.get("accuracy_by_exit")
        if found is None and (last is None or record["accuracy"] is None):
            continue
        if not found or not _is_by_group(found, num_exits) or not all(0 <= each <= 1 for each in found):
            wanted = "as many fractions in every evaluated round, one for each exit"
            raise RunError(f"{str(log.path)!r}, line {number}: `accuracy_by_exit` is {found!r}, expected {wanted}.")


def _is_by_group(value: object, num_groups: int) -> bool:
    return isinstance(value, list) and len(value) == num_groups and all(isinstance(each, int | float) for each in value)


def _partition(path: Path) -> Partition | None:
    content = _json_if_there(path)
    if not content:
        return None
    try:
        names = tuple(str(name) for name in content["class_names"])
        counts = {int(client): tuple(map(int, row)) for client, row in content["clients"].items()}
        held_out = frozenset(map(int, content.get("held_out", {})))
        clients = {int(client): name for client, name in content.get("names", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{str(path)!r} does not hold class names and counts by client: {error!r}.") from error
    if not counts or any(len(row) != len(names) for row in counts.values()):
        raise RunError(f"{str(path)!r} does not hold one count per class for every client.")
    partition = Partition(names, dict(sorted(counts.items())), held_out, clients)
    try:
        partition.clients  # noqa: B018 refuses names that cannot be right
    except DataError as error:
        raise RunError(f"{str(path)!r}: {error.message}.") from error
    return partition
