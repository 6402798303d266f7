"""The geometric median: the point whose distances to the updates have the lowest sum.

    v = argmin_v sum_i ||delta_i - v||,    by v <- sum_i w_i delta_i / sum_i w_i,    w_i = 1 / max(nu, ||delta_i - v||)

from the median of every coordinate on, because the mean may be anywhere. nu smooths the distance near an update,
relative here to the median distance of the updates from the start. One update, however large, pulls with the same force
as any other, so that bad clients cannot move the median far as long as they are fewer than half. Weights are uniform: a
claimed number of examples would be a claimed share of the vote.

Distances are over all tensors that the same clients sent, as for Krum (krum.py), in float64.

Source: Pillutla, Kakade and Harchaoui 2022 (Robust Aggregation for Federated Learning, arXiv 1912.13445), smoothed
Weiszfeld algorithm.

Shapes: M updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedelta.aggregation.base import Reads, Update
from fedelta.aggregation.robust import Median, by_senders, middle, too_few_problems
from fedelta.params import Params, ParamSpec
from fedelta.settings import Context, Settings


class GeometricMedian(Settings):
    """The geometric median of the updates, without weights.

    Args:
        num_bad: the largest number of bad clients in a round, fewer than half.
        num_steps: most steps of Weiszfeld's algorithm; it ends before if nothing moves any more.
        smoothing: nu, in median distances of the updates from the start.
    """

    name: Literal["geometric-median"] = "geometric-median"
    num_bad: int = Field(default=1, ge=0)  # as for Krum
    num_steps: int = Field(default=100, ge=1)  # our choice: it ends before, as a rule
    smoothing: float = Field(default=1e-6, gt=0)  # our choice
    reads: ClassVar[Reads] = "each"
    only_sums: ClassVar[bool] = False

    @property
    def min_values(self) -> int:
        """2 f + 1: bad clients are fewer than half."""
        return 2 * self.num_bad + 1

    def problems(self, context: Context) -> list[str]:
        """Reports cohorts of which so many bad clients are half or more."""
        return too_few_problems(self.name, self.num_bad, self.min_values, context)

    @property
    def of_statistics(self) -> Median:
        """The median of every coordinate."""
        return Median()

    def start(self, spec: ParamSpec) -> Weiszfeld:
        """Starts the median of the module docstring."""
        return Weiszfeld(self.num_steps, self.smoothing)


class Weiszfeld:
    """Collects the updates of a round.

    Args:
        num_steps: most steps.
        smoothing: nu, in median distances of the updates from the start.
    """

    def __init__(self, num_steps: int, smoothing: float) -> None:
        self._num_steps, self._smoothing = num_steps, smoothing
        self._deltas: list[Params] = []

    def add(self, update: Update) -> None:
        """See `Running.add`; keeps the update's tensors."""
        self._deltas.append(dict(update.delta))

    def finish(self, generator: Generator) -> Params:
        """See `Running.finish`; draws nothing."""
        medians: Params = {}
        for deltas in by_senders(self._deltas):
            medians |= self._median(deltas)
        return medians

    def _median(self, deltas: Sequence[Mapping[str, Tensor]]) -> Params:
        stacked = {name: torch.stack([delta[name].double() for delta in deltas]) for name in deltas[0]}
        median = {name: middle(values) for name, values in stacked.items()}
        nearest = self._smoothing * float(_distances(stacked, median).median())
        for _ in range(self._num_steps if nearest else 0):
            weights_M = 1 / _distances(stacked, median).clamp(min=nearest)
            before, shares_M = median, weights_M / weights_M.sum()
            median = {name: torch.tensordot(shares_M, values, dims=1) for name, values in stacked.items()}
            if all(torch.allclose(median[name], before[name], rtol=1e-9, atol=1e-12) for name in median):
                break
        return median


def _distances(stacked: Mapping[str, Tensor], center: Mapping[str, Tensor]) -> Tensor:
    """The distance of each update from `center` [M], over all tensors together."""
    squares = [(values - center[name]).reshape(len(values), -1).square().sum(1) for name, values in stacked.items()]
    return torch.stack(squares).sum(0).sqrt()
