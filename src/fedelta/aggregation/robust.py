"""Means that a few bad clients cannot carry away; they look at all values of a coordinate at once.

Each is a value of `strategy.mean`, for FedAvg and every server optimizer. All updates of a round stay in memory.

Of two values none can be told to be the bad one, so that each needs three: a round with fewer usable replies does not
count, whatever `strategy.min_replies` says, and a tensor that fewer clients sent (`[exits]` with tiers) stays as it is.

Shapes: M updates that hold a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedelta.aggregation.base import Mean, Reads, Update
from fedelta.params import Params, ParamSpec
from fedelta.settings import Context

_MIN_VALUES = 3


class Median(Mean):
    """The median of every coordinate; of an even number the middle of the two in the middle. Not weighted.

    Right while fewer than half of the clients whose replies are usable are bad: one of 3 or 4, two of 5 or 6.

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 1 and Algorithm 1, option I.
    """

    name: Literal["median"] = "median"
    reads: ClassVar[Reads] = "each"
    min_values: ClassVar[int] = _MIN_VALUES

    def problems(self, context: Context) -> list[str]:
        """Cohorts so small that a bad client decides."""
        num_values = context.get("strategy.clients_per_round")
        if num_values is None or num_values >= _MIN_VALUES:
            return []
        problem = (
            f"`strategy.mean.name` is 'median', which needs at least {_MIN_VALUES} replies to leave a bad one out, but "
            f"`strategy.clients_per_round` is {num_values}"
        )
        return [problem]

    @property
    def of_statistics(self) -> Median:
        """The same."""
        return self

    def start(self, spec: ParamSpec) -> ByCoordinate:
        """med_i delta_i, coordinate by coordinate."""
        return ByCoordinate(_middle)


class Trimmed(Mean):
    """The mean of every coordinate without its largest and smallest values. Not weighted.

    Right while no more clients are bad than are left out at one end. Replies that are lost take none of that below one:
    with a fraction of 0.2 one is left out at each end of three replies to nine, two of ten to fourteen.

    Args:
        fraction: share of the values that is left out at *each* end, rounded down to whole clients, but at least one.

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 2 and Algorithm 1, option II.
    """

    name: Literal["trimmed"] = "trimmed"
    fraction: float = Field(default=0.2, ge=0, lt=0.5)  # our choice: one of five, or two of ten, at each end
    reads: ClassVar[Reads] = "each"
    min_values: ClassVar[int] = _MIN_VALUES

    def problems(self, context: Context) -> list[str]:
        """Cohorts of which the fraction is less than one client."""
        num_values = context.get("strategy.clients_per_round")
        if num_values is None or self._share(num_values):
            return []
        problem = (
            f"`strategy.mean.fraction` is {self.fraction}, which leaves out none of "
            f"`strategy.clients_per_round` = {num_values}"
        )
        return [problem]

    @property
    def of_statistics(self) -> Trimmed:
        """The same."""
        return self

    def num_trimmed(self, num_values: int) -> int:
        """Values that are left out at each end; one where the fraction is less than that and one would be left.

        >>> [Trimmed(fraction=0.2).num_trimmed(num_values) for num_values in (2, 3, 4, 5, 10)]
        [0, 1, 1, 1, 2]
        """
        at_least = 1 if self.fraction and num_values >= _MIN_VALUES else 0
        return max(at_least, self._share(num_values))

    def _share(self, num_values: int) -> int:
        """The fraction in whole clients; 0.29 of 100 are 29, although 0.29 * 100 is less in floats."""
        return int(self.fraction * num_values + 1e-9)

    def start(self, spec: ParamSpec) -> ByCoordinate:
        """The mean of what remains."""
        return ByCoordinate(self._inner_mean)

    def _inner_mean(self, values_M: Tensor) -> Tensor:
        left_out = self.num_trimmed(len(values_M))
        return values_M.sort(dim=0).values[left_out : len(values_M) - left_out].mean(0)


class ByCoordinate:
    """A statistic of every coordinate, under way.

    Args:
        statistic: of the values [M, ...] of one tensor, float64.
    """

    def __init__(self, statistic: Callable[[Tensor], Tensor]) -> None:
        self._statistic = statistic
        self._held: dict[str, list[Tensor]] = {}

    def add(self, update: Update) -> None:
        """See `Running.add`; keeps the update's tensors."""
        for name, tensor in update.delta.items():
            self._held.setdefault(name, []).append(tensor)

    def finish(self, generator: Generator) -> Params:
        """See `Running.finish`; draws nothing."""
        return {name: self._statistic(torch.stack(tensors).double()) for name, tensors in self._held.items()}


def _middle(values_M: Tensor) -> Tensor:
    """torch.median takes the lower of two; numpy's definition is their mean."""
    ordered, half = values_M.sort(dim=0).values, len(values_M) // 2
    return ordered[half] if len(values_M) % 2 else (ordered[half - 1] + ordered[half]) / 2
