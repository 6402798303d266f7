"""Means that a few bad clients cannot carry away; they look at all values of a coordinate at once.

Each is a value of `strategy.mean`, for FedAvg and every server optimizer. All updates of a round stay in memory.

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


class Median(Mean):
    """The median of every coordinate; of an even number the middle of the two in the middle. Not weighted.

    Right while fewer than half of the clients are bad.

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 1 and Algorithm 1, option I.
    """

    name: Literal["median"] = "median"
    reads: ClassVar[Reads] = "each"

    @property
    def of_statistics(self) -> Median:
        """The same."""
        return self

    def start(self, spec: ParamSpec) -> ByCoordinate:
        """med_i delta_i, coordinate by coordinate."""
        return ByCoordinate(_middle)


class Trimmed(Mean):
    """The mean of every coordinate without its largest and smallest values. Not weighted.

    Args:
        fraction: share of the values that is left out at *each* end, rounded down to whole clients.

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 2 and Algorithm 1, option II.
    """

    name: Literal["trimmed"] = "trimmed"
    fraction: float = Field(default=0.2, ge=0, lt=0.5)  # our choice: one of five, or two of ten, at each end
    reads: ClassVar[Reads] = "each"

    def problems(self, context: Context) -> list[str]:
        """Cohorts so small that none is left out."""
        num_values = context.get("strategy.clients_per_round")
        if num_values is None or self.num_trimmed(num_values):
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
        """Values that are left out at each end; 0.29 of 100 are 29, although 0.29 * 100 is less in floats.

        >>> Trimmed(fraction=0.29).num_trimmed(100)
        29
        """
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
