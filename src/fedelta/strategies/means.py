"""Ways to make one delta of many: the weighted mean, the plain one, and three that a few bad clients cannot carry away.

Each is a value of `strategy.mean`, for FedAvg and every server optimizer.

Shapes: M updates that hold a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedelta.params import Params, weighted_mean
from fedelta.settings import Context, Settings
from fedelta.strategies.base import Update


class Weighted(Settings):
    """The mean weighted by `num_examples`.

    Source: McMahan et al. 2017 (FedAvg, arXiv 1602.05629), Algorithm 1.
    """

    name: Literal["weighted"] = "weighted"

    @property
    def of_statistics(self) -> Weighted:
        """The same."""
        return self

    def of(self, updates: Sequence[Update]) -> Params:
        """sum_i n_i delta_i / sum_i n_i."""
        return weighted_mean((update.num_examples, update.delta) for update in updates)


class Uniform(Settings):
    """The mean in which every client counts the same, whatever the number of its examples."""

    name: Literal["uniform"] = "uniform"

    @property
    def of_statistics(self) -> Uniform:
        """The same."""
        return self

    def of(self, updates: Sequence[Update]) -> Params:
        """sum_i delta_i / M."""
        return weighted_mean((1, update.delta) for update in updates)


class Median(Settings):
    """The median of every coordinate; of an even number the middle of the two in the middle. Not weighted.

    Right while fewer than half of the clients are bad.

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 1 and Algorithm 1, option I.
    """

    name: Literal["median"] = "median"

    @property
    def of_statistics(self) -> Median:
        """The same."""
        return self

    def of(self, updates: Sequence[Update]) -> Params:
        """med_i delta_i, coordinate by coordinate."""
        return _by_coordinate(updates, _middle)


class Trimmed(Settings):
    """The mean of every coordinate without its largest and smallest values. Not weighted.

    Args:
        fraction: share of the values that is left out at *each* end, rounded down to whole clients.

    Source: Yin et al. 2018 (arXiv 1803.01498), Definition 2 and Algorithm 1, option II.
    """

    name: Literal["trimmed"] = "trimmed"
    fraction: float = Field(default=0.2, ge=0, lt=0.5)  # our choice: one of five, or two of ten, at each end

    def problems(self, context: Context) -> list[str]:
        """Cohorts so small that nobody is left out."""
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

    def of(self, updates: Sequence[Update]) -> Params:
        """The mean of what remains."""
        return _by_coordinate(updates, self._inner_mean)

    def _inner_mean(self, values_M: Tensor) -> Tensor:
        left_out = self.num_trimmed(len(values_M))
        return values_M.sort(dim=0).values[left_out : len(values_M) - left_out].mean(0)


class Clipped(Settings):
    """The weighted mean of deltas that are shortened to `max_norm` where they are longer.

    Statistics are not clipped: their lengths have nothing to do with those of deltas.

    Args:
        max_norm: longest Euclidean length of a client's delta, over all its trained tensors together.

    Source: Sun et al. 2019 (arXiv 1911.07963), norm thresholding.
    """

    name: Literal["clipped"] = "clipped"
    max_norm: float = Field(default=1.0, gt=0)  # our choice; look at `delta_norm` in rounds.jsonl for the usual length

    @property
    def of_statistics(self) -> Weighted:
        """Not clipped."""
        return Weighted()

    def of(self, updates: Sequence[Update]) -> Params:
        """Weighted mean of delta_i / max(1, ||delta_i|| / max_norm)."""
        return weighted_mean((update.num_examples, self._clip(update.delta)) for update in updates)

    def _clip(self, delta: Params) -> Params:
        shrink = 1 / max(1.0, norm(delta) / self.max_norm)
        return {name: tensor.double() * shrink for name, tensor in delta.items()}


AnyMean = Weighted | Uniform | Median | Trimmed | Clipped


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Euclidean length of all tensors together.

    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor(4.0)})
    5.0
    """
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def _by_coordinate(updates: Sequence[Update], statistic: Callable[[Tensor], Tensor]) -> Params:
    """`statistic` of the stacked values of each tensor, over the updates that hold it."""
    held: dict[str, list[Tensor]] = {}
    for update in updates:
        for name, tensor in update.delta.items():
            held.setdefault(name, []).append(tensor)
    return {name: statistic(torch.stack(tensors).double()) for name, tensors in held.items()}


def _middle(values_M: Tensor) -> Tensor:
    """torch.median takes the lower of two; numpy's definition is their mean."""
    ordered, half = values_M.sort(dim=0).values, len(values_M) // 2
    return ordered[half] if len(values_M) % 2 else (ordered[half - 1] + ordered[half]) / 2
