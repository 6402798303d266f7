"""Robust means, which a few bad clients cannot move far; they need all values of a coordinate at once.

Each is a choice of `strategy.mean`, for FedAvg and every server optimizer. All updates of a round are in memory.

With two values it is impossible to say which one is bad, so these means need three. A round with fewer usable replies
does not count, whatever `strategy.min_replies` is, and a tensor that fewer clients sent (`[exits]` with tiers) does not
change.

Shapes: M updates that hold a tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedelta.aggregation.base import Reads, Update
from fedelta.params import Params, ParamSpec
from fedelta.settings import Context, Settings

_MIN_VALUES = 3


class Median(Settings):
    """The median of every coordinate, without weights; the mean of the two middle values if their number is even.

    Tolerates bad clients as long as they are fewer than half of the usable replies: one of 3 or 4, two of 5 or 6.

    Args:
        num_bad: f, the largest number of bad clients in a round.

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 1 and Algorithm 1, option I.
    """

    name: Literal["median"] = "median"
    num_bad: int = Field(default=1, ge=1)  # our choice: the least that is worth its price
    reads: ClassVar[Reads] = "each"
    only_sums: ClassVar[bool] = False

    @property
    def min_values(self) -> int:
        """2 f + 1: bad clients are fewer than half."""
        return 2 * self.num_bad + 1

    def problems(self, context: Context) -> list[str]:
        """Reports cohorts that are too small to outvote the bad clients."""
        return too_few_problems(self.name, self.num_bad, self.min_values, context)

    @property
    def of_statistics(self) -> Median:
        """Itself."""
        return self

    def start(self, spec: ParamSpec) -> ByCoordinate:
        """Starts the median of delta_i, coordinate by coordinate."""
        return ByCoordinate(middle)


class Trimmed(Settings):
    """The mean of every coordinate without its largest and smallest values, without weights.

    Tolerates as many bad clients as are left out at one end. With a fraction of 0.2 that is one of three to nine
    replies, and two of ten to fourteen.

    Args:
        fraction: share of the values to leave out at *each* end, rounded down to whole clients, but at least one.
        num_bad: f, the largest number of bad clients in a round; so many must be left out at each end.

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 2 and Algorithm 1, option II.
    """

    name: Literal["trimmed"] = "trimmed"
    fraction: float = Field(default=0.2, ge=0, lt=0.5)  # our choice: one of five, or two of ten, at each end
    num_bad: int = Field(default=1, ge=1)  # as for the median
    reads: ClassVar[Reads] = "each"
    only_sums: ClassVar[bool] = False

    @property
    def min_values(self) -> int:
        """The fewest values of which f are left out at each end, with at least one between them.

        >>> [Trimmed(fraction=0.2, num_bad=num_bad).min_values for num_bad in (1, 2, 3)]
        [3, 10, 15]
        """
        numbers = itertools.count(2 * self.num_bad + 1)
        return next(number for number in numbers if not self.fraction or self.num_trimmed(number) >= self.num_bad)

    def problems(self, context: Context) -> list[str]:
        """Reports cohorts of which the fraction is less than one client."""
        num_values = context.get("strategy.clients_per_round")
        if num_values is not None and self._share(num_values):
            return too_few_problems(self.name, self.num_bad, self.min_values, context)
        if num_values is None:
            return []
        problem = (
            f"`strategy.mean.fraction` is {self.fraction}, which is less than one of "
            f"`strategy.clients_per_round` = {num_values}"
        )
        return [problem]

    @property
    def of_statistics(self) -> Trimmed:
        """Itself."""
        return self

    def num_trimmed(self, num_values: int) -> int:
        """Number of values that are left out at each end; at least one if three values or more are there.

        >>> [Trimmed(fraction=0.2).num_trimmed(num_values) for num_values in (2, 3, 4, 5, 10)]
        [0, 1, 1, 1, 2]
        """
        minimum = 1 if self.fraction and num_values >= _MIN_VALUES else 0
        return max(minimum, self._share(num_values))

    def _share(self, num_values: int) -> int:
        """`fraction` of `num_values`, rounded down."""
        # The float product 0.29 * 100 is less than 29.
        return int(self.fraction * num_values + 1e-9)

    def start(self, spec: ParamSpec) -> ByCoordinate:
        """Starts the mean of the values that are not left out."""
        return ByCoordinate(self._inner_mean)

    def _inner_mean(self, values_M: Tensor) -> Tensor:
        num_trimmed = self.num_trimmed(len(values_M))
        return values_M.sort(dim=0).values[num_trimmed : len(values_M) - num_trimmed].mean(0)


class ByCoordinate:
    """Collects the updates of a round, for a statistic of every coordinate.

    Args:
        statistic: maps the values of one tensor, [M, ...] in float64, to one value [...].
    """

    def __init__(self, statistic: Callable[[Tensor], Tensor]) -> None:
        self._statistic = statistic
        self._tensors: dict[str, list[Tensor]] = {}

    def add(self, update: Update) -> None:
        """See `Running.add`; keeps the update's tensors."""
        for name, tensor in update.delta.items():
            self._tensors.setdefault(name, []).append(tensor)

    def finish(self, generator: Generator) -> Params:
        """See `Running.finish`; draws nothing."""
        return {name: self._statistic(torch.stack(tensors).double()) for name, tensors in self._tensors.items()}


def middle(values_M: Tensor) -> Tensor:
    """The median over the first axis; unlike torch.median the mean of the two middle values if M is even."""
    ordered, half = values_M.sort(dim=0).values, len(values_M) // 2
    return ordered[half] if len(values_M) % 2 else (ordered[half - 1] + ordered[half]) / 2


def too_few_problems(name: str, num_bad: int, least: int, context: Context) -> list[str]:
    """The problem that a cohort is too small for a mean that leaves out `num_bad` clients; empty if it is not.

    Args:
        name: of the mean.
        num_bad: f.
        least: fewest replies that it needs.
        context: all sections.
    """
    num_values = context.get("strategy.clients_per_round")
    if num_values is None or num_values >= least:
        return []
    bad = "a bad one" if num_bad == 1 else f"{num_bad} bad ones"
    problem = (
        f"`strategy.mean.name` is {name!r}, which needs at least {least} replies to leave {bad} out, but "
        f"`strategy.clients_per_round` is {num_values}"
    )
    return [problem]


def by_senders(deltas: Sequence[Params]) -> Iterator[Sequence[Mapping[str, Tensor]]]:
    """The deltas in parts, in each of which all have the same tensors: those that the same clients sent."""
    names_of: dict[tuple[int, ...], list[str]] = {}
    for name in dict.fromkeys(name for delta in deltas for name in delta):
        senders = tuple(index for index, delta in enumerate(deltas) if name in delta)
        names_of.setdefault(senders, []).append(name)
    for senders, names in names_of.items():
        yield [{name: deltas[index][name] for name in names} for index in senders]
