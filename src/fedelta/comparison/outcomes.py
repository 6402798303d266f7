"""What came out: finished runs, the groups of those that differ in their seed only, and the Pareto front.

Accuracies are fractions here; tables and figures show percent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedelta.results.history import read_histories
from fedelta.results.page import per_client


@dataclass(frozen=True)
class Outcome:
    """A finished run in figures.

    Args:
        accuracy: fraction, of the last evaluated round; None if none was evaluated.
        loss: nats per example, of the same round; infinite likewise.
        tuned_parameters: number of scalars that travel.
        bytes_per_client: mean payload of a client in a round, down and up together.
        total_bytes: of all payloads in both directions.
        wall_seconds: in all rounds.
        peak_memory_bytes: highest resident memory.
        curve: round and accuracy of every evaluated round.
        citations: BibTeX.
        relative_cost: `History.relative_cost`, a fraction; None where the run does not tell.
        first_exit_accuracy: fraction, at the first exit in the same round as `accuracy`; None without exits.
        mean_exit_accuracy: fraction, the mean over the exits, likewise.
    """

    accuracy: float | None
    loss: float
    tuned_parameters: int
    bytes_per_client: float | None
    total_bytes: int
    wall_seconds: float
    peak_memory_bytes: int
    curve: tuple[tuple[int, float], ...]
    citations: str
    relative_cost: float | None = None
    first_exit_accuracy: float | None = None
    mean_exit_accuracy: float | None = None


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
        cell: with the accuracy on validation rows in its outcome.
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
        on_front: whether no other group of its task sends less for the same accuracy, or the same for more.
    """

    labels: Mapping[str, str]
    cells: tuple[CellState, ...]
    on_front: bool = False

    @property
    def outcomes(self) -> list[Outcome]:
        """Of its finished cells."""
        return [cell.outcome for cell in self.cells if cell.outcome is not None]

    @property
    def accuracies(self) -> list[float]:
        """Of its finished cells, as fractions."""
        return [outcome.accuracy for outcome in self.outcomes if outcome.accuracy is not None]

    @property
    def accuracy(self) -> float | None:
        """Mean over the seeds, a fraction."""
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n - 1) over the seeds, a fraction; None with one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def num_seeds(self) -> int:
        """Seeds that mean and deviation are taken over."""
        return len(self.accuracies)

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
    def first_exit_accuracy(self) -> float | None:
        """Mean over the seeds of the accuracy at the first exit, a fraction; None without exits."""
        return _mean(outcome.first_exit_accuracy for outcome in self.outcomes)

    @property
    def mean_exit_accuracy(self) -> float | None:
        """Mean over the seeds of the mean over the exits, a fraction; None without exits."""
        return _mean(outcome.mean_exit_accuracy for outcome in self.outcomes)

    @property
    def mean_exit_deviation(self) -> float | None:
        """Sample standard deviation (n - 1) of the mean over the exits over the seeds, a fraction; None with one."""
        found = [each for outcome in self.outcomes if (each := outcome.mean_exit_accuracy) is not None]
        return statistics.stdev(found) if len(found) > 1 else None

    @property
    def wall_seconds(self) -> float | None:
        """Time in the rounds of a run, with one arithmetic thread."""
        return _mean(outcome.wall_seconds for outcome in self.outcomes)

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Round and mean accuracy, for the rounds that every finished cell evaluated."""
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
        RunError: a file is missing or broken.
    """
    run = read_histories([path])[0]
    return Outcome(
        accuracy=run.final_accuracy,
        loss=run.evaluated[-1]["test_loss_nats"] if run.evaluated else math.inf,
        tuned_parameters=run.model["tuned_parameters"],
        bytes_per_client=per_client(run),
        total_bytes=run.ledger.total_bytes,
        wall_seconds=run.wall_seconds,
        peak_memory_bytes=run.summary["peak_memory_bytes"],
        curve=tuple((record["round"], record["accuracy"]) for record in run.evaluated),
        citations=run.citations,
        relative_cost=run.relative_cost,
        first_exit_accuracy=run.accuracy_by_exit[0] if run.accuracy_by_exit else None,
        mean_exit_accuracy=run.mean_exit_accuracy,
    )


def group_cells(cells: Sequence[CellState], seed_axis: str, task_axes: Sequence[str]) -> list[Group]:
    """The groups in the order of their first cells, with the Pareto front of each task marked.

    Args:
        cells: in the order of the grid.
        seed_axis: cells that differ in this axis only form a group.
        task_axes: those that change the data or their division; accuracies on different tasks are not compared.
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
        known = [place for place in places if groups[place].accuracy is not None]
        flags = pareto_front([(groups[place].total_bytes or 0.0, groups[place].accuracy or 0.0) for place in known])
        front |= {place for place, flag in zip(known, flags, strict=True) if flag}
    return [Group(group.labels, group.cells, place in front) for place, group in enumerate(groups)]


def tasks(groups: Sequence[Group], task_axes: Sequence[str]) -> dict[tuple[str, ...], list[int]]:
    """Labels of the task axes to the places of their groups, in order."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, group in enumerate(groups):
        found.setdefault(tuple(group.labels[name] for name in task_axes), []).append(place)
    return found


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each (bytes, accuracy) is on the front: no other has as few bytes and as much accuracy, and one better.

    >>> pareto_front([(1, 0.5), (2, 0.9), (3, 0.9), (4, 0.95)])
    [True, True, False, True]
    """

    def beaten(point: tuple[float, float]) -> bool:
        return any(
            other[0] <= point[0] and other[1] >= point[1] and other != point for other in points
        )  # fmt: skip

    return [not beaten(point) for point in points]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
