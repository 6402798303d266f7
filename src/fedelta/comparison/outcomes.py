"""What came out: finished runs, the groups of those that differ in their seed only, and the Pareto front.

Measures are as records have them here, fractions too; tables and figures show percent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedelta.errors import RunError
from fedelta.record.history import read_histories
from fedelta.tasks.base import Measure

_BRING_BACK = "bring them back from a copy, or compare in another `--out`."


@dataclass(frozen=True)
class Outcome:
    """A finished run in figures.

    Args:
        final: the primary measure in the last evaluated round; None if none was evaluated.
        loss: what the task minimises, in the same round; infinite likewise.
        tuned_parameters: number of scalars that travel.
        bytes_per_client: mean payload of a client in a round, down and up together.
        total_bytes: of all payloads in both directions.
        wall_seconds: in all rounds; None where they were lost.
        peak_memory_bytes: highest resident memory.
        curve: round and primary measure of every evaluated round.
        citations: BibTeX.
        relative_cost: `History.relative_cost`, a fraction; None where the run does not tell.
        first_exit: the primary measure at the first exit in the same round as `final`; None without exits.
        mean_exit: its mean over the exits, likewise.
    """

    final: float | None
    loss: float
    tuned_parameters: int
    bytes_per_client: float | None
    total_bytes: int
    wall_seconds: float | None
    peak_memory_bytes: int
    curve: tuple[tuple[int, float], ...]
    citations: str
    relative_cost: float | None = None
    first_exit: float | None = None
    mean_exit: float | None = None


@dataclass(frozen=True)
class CellState:
    """A cell and how it stands.

    Args:
        labels: axis name to the label of its value.
        value: of the searched key; None without a search, or before the search is over.
        run: name of the run directory within the comparison's; empty before the search is over.
        outcome: None before the run is finished.
        failure: the text of its error, or None.
    """

    labels: Mapping[str, str]
    value: object = None
    run: str = ""
    outcome: Outcome | None = None
    failure: str | None = None

    @property
    def state(self) -> str:
        """In one word."""
        return "finished" if self.outcome is not None else "failed" if self.failure is not None else "waiting"


@dataclass(frozen=True)
class Trial:
    """A run of the search.

    Args:
        cell: with the measures on validation rows in its outcome.
        is_best: whether its value was chosen.
    """

    cell: CellState
    is_best: bool


@dataclass(frozen=True)
class Group:
    """Cells that differ in nothing but the seed; figures are means over the finished ones, None while there are none.

    Args:
        labels: axis name to the label of its value, for every axis but the seed.
        cells: one for each seed.
        on_front: whether no other group of its task sends less for as good a mean, or as much for a better one.
    """

    labels: Mapping[str, str]
    cells: tuple[CellState, ...]
    on_front: bool = False

    @property
    def outcomes(self) -> list[Outcome]:
        """Of its finished cells."""
        return [cell.outcome for cell in self.cells if cell.outcome is not None]

    @property
    def finals(self) -> list[float]:
        """The primary measure of its finished cells."""
        return [outcome.final for outcome in self.outcomes if outcome.final is not None]

    @property
    def mean(self) -> float | None:
        """Of the primary measure, over the seeds."""
        return statistics.fmean(self.finals) if self.finals else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n - 1) of the primary measure over the seeds; None with one seed."""
        return statistics.stdev(self.finals) if len(self.finals) > 1 else None

    @property
    def num_seeds(self) -> int:
        """Seeds that mean and deviation are taken over."""
        return len(self.finals)

    @property
    def value(self) -> object:
        """Of the searched key; None without a search, or before it is over."""
        return self.cells[0].value

    @property
    def tuned_parameters(self) -> int | None:
        """Number of scalars that travel."""
        return self.outcomes[0].tuned_parameters if self.outcomes else None

    @property
    def bytes_per_client(self) -> float | None:
        """Payload of a client in a round, down and up together."""
        return _mean(outcome.bytes_per_client for outcome in self.outcomes)

    @property
    def total_bytes(self) -> float | None:
        """Payloads of a whole run, both directions."""
        return _mean(outcome.total_bytes for outcome in self.outcomes)

    @property
    def relative_cost(self) -> float | None:
        """Scalars averaged, as a share of what they are when every group travels in every round."""
        return _mean(outcome.relative_cost for outcome in self.outcomes)

    @property
    def first_exit(self) -> float | None:
        """Mean over the seeds of the primary measure at the first exit; None without exits."""
        return _mean(outcome.first_exit for outcome in self.outcomes)

    @property
    def mean_exit(self) -> float | None:
        """Mean over the seeds of the mean over the exits; None without exits."""
        return _mean(outcome.mean_exit for outcome in self.outcomes)

    @property
    def mean_exit_deviation(self) -> float | None:
        """Sample standard deviation (n - 1) of the mean over the exits over the seeds; None with one."""
        found = [outcome.mean_exit for outcome in self.outcomes if outcome.mean_exit is not None]
        return statistics.stdev(found) if len(found) > 1 else None

    @property
    def wall_seconds(self) -> float | None:
        """Time in the rounds of a run, with one arithmetic thread."""
        return _mean(outcome.wall_seconds for outcome in self.outcomes)

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Round and mean of the primary measure, for the rounds that every finished cell evaluated."""
        curves = [dict(outcome.curve) for outcome in self.outcomes]
        rounds = sorted(set.intersection(*map(set, curves))) if curves else []
        return [(round, statistics.fmean(curve[round] for curve in curves)) for round in rounds]

    @property
    def failures(self) -> list[str]:
        """The texts of the errors of its cells, each once."""
        return list(dict.fromkeys(cell.failure for cell in self.cells if cell.failure is not None))


def read_outcome(path: Path) -> Outcome:
    """The outcome in the directory of a finished run.

    Raises:
        RunError: a file is missing, broken, or does not fit the others.
    """
    run = read_histories([path])[0]
    if run.misfits:
        raise RunError(f"files of {str(path)!r} do not fit: {'; '.join(run.misfits)}.", hint=_BRING_BACK)
    return Outcome(
        final=run.final,
        loss=run.losses[-1][1] if run.losses else math.inf,
        tuned_parameters=run.model["tuned_parameters"],
        bytes_per_client=run.bytes_per_client_round,
        total_bytes=run.ledger.total_bytes,
        wall_seconds=run.wall_seconds,
        peak_memory_bytes=run.summary["peak_memory_bytes"],
        curve=tuple(run.curve),
        citations=run.citations,
        relative_cost=run.relative_cost,
        first_exit=run.by_exit[0] if run.by_exit else None,
        mean_exit=run.mean_over_exits,
    )


def group_cells(cells: Sequence[CellState], seed_axis: str, task_axes: Sequence[str], primary: Measure) -> list[Group]:
    """The groups in the order of their first cells, with the Pareto front of each task marked.

    Args:
        cells: in the order of the grid.
        seed_axis: cells that differ in this axis only form a group.
        task_axes: those that change the data or their division; measures of different tasks are not compared.
        primary: the measure by which a group is good.
    """
    by_labels: dict[tuple[str, ...], list[CellState]] = {}
    for cell in cells:
        key = tuple(label for name, label in cell.labels.items() if name != seed_axis)
        by_labels.setdefault(key, []).append(cell)
    groups = [
        Group({name: label for name, label in members[0].labels.items() if name != seed_axis}, tuple(members))
        for members in by_labels.values()
    ]
    front: set[int] = set()
    for places in tasks(groups, task_axes).values():
        known = [place for place in places if groups[place].mean is not None]
        points = [(groups[place].total_bytes or 0.0, groups[place].mean or 0.0) for place in known]
        flags = pareto_front(points, higher_is_better=primary.higher_is_better)
        front |= {place for place, flag in zip(known, flags, strict=True) if flag}
    return [Group(group.labels, group.cells, place in front) for place, group in enumerate(groups)]


def tasks(groups: Sequence[Group], task_axes: Sequence[str]) -> dict[tuple[str, ...], list[int]]:
    """Labels of the task axes to the places of their groups, in order."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, group in enumerate(groups):
        found.setdefault(tuple(group.labels[name] for name in task_axes), []).append(place)
    return found


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool = True) -> list[bool]:
    """Whether each (bytes, value) is on the front: no other has as few bytes and as good a value, and one better.

    >>> pareto_front([(1, 0.5), (2, 0.9), (3, 0.9), (4, 0.95)])
    [True, True, False, True]
    >>> pareto_front([(1, 0.5), (2, 0.9), (3, 0.3)], higher_is_better=False)
    [True, False, True]
    """
    sign = 1 if higher_is_better else -1

    def beaten(point: tuple[float, float]) -> bool:
        return any(other[0] <= point[0] and sign * (other[1] - point[1]) >= 0 and other != point for other in points)

    return [not beaten(point) for point in points]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
