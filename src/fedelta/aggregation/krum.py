"""Krum and Multi-Krum: the mean of the updates that lie closest to the others.

For n updates, of which at most f are bad, the score of update i is the sum of its squared distances to the n - f - 2
updates that are closest to it, itself left out. Krum takes the update with the lowest score, Multi-Krum the uniform
mean of the m with the lowest scores; of equal scores the one that is closer to all others. The paper proves what
this tolerates for n > 2 f + 2.

Distances are over all tensors of the round together, and in float64: of differences and not from |x|^2 + |y|^2 - 2 x y,
which cancels. Where clients sent different tensors, as with tiers (`[exits]`), the tensors that the same clients sent
are a problem for themselves, with distances over these tensors; so are the tensors of a round of FedLAMA, which are
those that are due. A tensor that fewer than 2 f + 3 clients sent does not change.

Source: Blanchard et al. 2017 (Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS).

Shapes: M updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedelta.aggregation.base import Reads, Update
from fedelta.aggregation.robust import Median, by_senders, too_few_problems
from fedelta.params import Params, ParamSpec
from fedelta.settings import Context, Settings


class Krum(Settings):
    """The update that lies closest to the others, without weights.

    Args:
        num_bad: f, the largest number of bad clients in a round.
    """

    name: Literal["krum"] = "krum"
    num_bad: int = Field(default=1, ge=0)  # our choice: the least that is worth its price
    reads: ClassVar[Reads] = "each"
    only_sums: ClassVar[bool] = False

    @property
    def min_values(self) -> int:
        """2 f + 3."""
        return 2 * self.num_bad + 3

    def problems(self, context: Context) -> list[str]:
        """Reports cohorts that are too small for so many bad clients."""
        return too_few_problems(self.name, self.num_bad, self.min_values, context)

    @property
    def of_statistics(self) -> Median:
        """The median: a bad client has bad statistics too."""
        return Median()

    def start(self, spec: ParamSpec) -> Closest:
        """Starts the choice of one update."""
        return Closest(self.num_bad, 1)


class MultiKrum(Settings):
    """The uniform mean of the updates that lie closest to the others.

    Args:
        num_bad: f, the largest number of bad clients in a round.
        num_chosen: m, how many updates are in the mean; None: n - f of the n that came.
    """

    name: Literal["multi-krum"] = "multi-krum"
    num_bad: int = Field(default=1, ge=0)  # as for Krum
    num_chosen: int | None = Field(default=None, ge=1)  # the paper has n - f
    reads: ClassVar[Reads] = "each"
    only_sums: ClassVar[bool] = False

    @property
    def min_values(self) -> int:
        """2 f + 3, or so many that `num_chosen` good ones are there."""
        return max(2 * self.num_bad + 3, self.num_bad + (self.num_chosen or 0))

    def problems(self, context: Context) -> list[str]:
        """Reports cohorts that are too small for so many bad clients, or for so many that are chosen."""
        num_values, chosen = context.get("strategy.clients_per_round"), self.num_chosen
        if problems := too_few_problems(self.name, self.num_bad, 2 * self.num_bad + 3, context):
            return problems
        if chosen is None or num_values is None or num_values >= self.min_values:
            return []
        problem = (
            f"`strategy.mean.num_chosen` is {chosen}, expected at most {num_values - self.num_bad}: "
            f"`strategy.clients_per_round` = {num_values} without `strategy.mean.num_bad` = {self.num_bad}"
        )
        return [problem]

    @property
    def of_statistics(self) -> Median:
        """The median: a bad client has bad statistics too."""
        return Median()

    def start(self, spec: ParamSpec) -> Closest:
        """Starts the choice of several updates."""
        return Closest(self.num_bad, self.num_chosen)


class Closest:
    """Collects the updates of a round.

    Args:
        num_bad: f.
        num_chosen: m; None: all but f.
    """

    def __init__(self, num_bad: int, num_chosen: int | None) -> None:
        self._num_bad, self._num_chosen = num_bad, num_chosen
        self._deltas: list[Params] = []

    def add(self, update: Update) -> None:
        """See `Running.add`; keeps the update's tensors."""
        self._deltas.append(dict(update.delta))

    def finish(self, generator: Generator) -> Params:
        """See `Running.finish`; draws nothing."""
        means: Params = {}
        for deltas in by_senders(self._deltas):
            means |= self._mean(deltas)
        return means

    def _mean(self, deltas: Sequence[Mapping[str, Tensor]]) -> Params:
        """The mean of the chosen ones of updates with the same tensors."""
        num_chosen = self._num_chosen or max(1, len(deltas) - self._num_bad)
        squares_MM = squared_distances(deltas)
        # Of two that are closest to each other and score the same, the one that is closer to all others.
        ranks = list(zip(scores(squares_MM, self._num_bad).tolist(), squares_MM.sum(1).tolist(), strict=True))
        order = sorted(range(len(deltas)), key=lambda index: (*ranks[index], index))
        chosen = [deltas[index] for index in sorted(order[:num_chosen])]
        return {name: torch.stack([delta[name].double() for delta in chosen]).mean(0) for name in deltas[0]}


def squared_distances(deltas: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The squared distance of every two updates [M, M], float64, over all tensors."""
    count = len(deltas)
    squares_MM = torch.zeros(count, count, dtype=torch.float64)
    for name in deltas[0]:
        values = [delta[name].double() for delta in deltas]
        for i in range(count):
            for j in range(i):
                squares_MM[i, j] += (values[i] - values[j]).square().sum()
    return squares_MM + squares_MM.T


def scores(squares_MM: Tensor, num_bad: int) -> Tensor:
    """The score of each update [M]: the sum of squared distances to its n - f - 2 closest others.

    >>> points = [{"w": torch.tensor(value)} for value in (0.0, 1.0, 2.0, 9.0)]
    >>> scores(squared_distances(points), 0).tolist()  # 1 + 4, 1 + 1, 1 + 4, 49 + 64
    [5.0, 2.0, 5.0, 113.0]
    """
    count = len(squares_MM)
    if count == 1:
        return torch.zeros(1)
    # Itself is left out by its place and not by its distance: another update may be equal.
    others = squares_MM.clone().fill_diagonal_(torch.inf).sort(dim=1).values
    return others[:, : max(1, count - num_bad - 2)].sum(1)
