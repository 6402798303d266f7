"""Means that need only sums, so that one update is in memory at a time.

`Weighted`, `Uniform` and `Clipped` are choices of `strategy.mean`, for FedAvg and every server optimizer. `Normalised`
belongs to FedNova and `UniformDeltas` to SCAFFOLD.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Generator

from fedelta.aggregation.base import Mean, Update
from fedelta.params import Params, ParamSpec, WeightedSum, norm


class Weighted(Mean):
    """The mean weighted by numbers of examples.

    Source: McMahan et al. 2017 (FedAvg, arXiv 1602.05629), Algorithm 1.
    """

    name: Literal["weighted"] = "weighted"

    @property
    def of_statistics(self) -> Weighted:
        """Itself."""
        return self

    def start(self, spec: ParamSpec) -> RunningMean:
        """Starts sum_i n_i delta_i / sum_i n_i."""
        return RunningMean(_examples)


class Uniform(Mean):
    """The mean in which all clients have the same weight."""

    name: Literal["uniform"] = "uniform"

    @property
    def of_statistics(self) -> Uniform:
        """Itself."""
        return self

    def start(self, spec: ParamSpec) -> RunningMean:
        """Starts sum_i delta_i / M."""
        return RunningMean(_one)


class UniformDeltas(Mean):
    """The uniform mean of deltas, as in SCAFFOLD's equations, with the weighted mean of statistics."""

    name: Literal["uniform-deltas"] = "uniform-deltas"

    @property
    def of_statistics(self) -> Weighted:
        """The weighted mean: the mean and variance of a norm are statistics over examples."""
        return Weighted()

    def start(self, spec: ParamSpec) -> RunningMean:
        """Starts sum_i delta_i / M."""
        return RunningMean(_one)


class Clipped(Mean):
    """The weighted mean of deltas, with the norm of each limited to `max_norm`.

    Statistics are not clipped: their size has nothing to do with the size of deltas.

    Args:
        max_norm: upper limit for the Euclidean norm of a client's delta, over all trained tensors together.

    Source: Sun et al. 2019 (arXiv 1911.07963), norm thresholding.
    """

    name: Literal["clipped"] = "clipped"
    max_norm: float = Field(default=1.0, gt=0)  # our choice; see `delta_norm` in rounds.jsonl for the usual norm

    @property
    def of_statistics(self) -> Weighted:
        """The weighted mean without clipping."""
        return Weighted()

    def start(self, spec: ParamSpec) -> RunningMean:
        """Starts the weighted mean of delta_i / max(1, ||delta_i|| / max_norm)."""
        return RunningMean(_examples, self._clip)

    def _clip(self, delta: Params) -> Params:
        factor = 1 / max(1.0, norm(delta) / self.max_norm)
        return {name: tensor.double() * factor for name, tensor in delta.items()}


class Normalised(Mean):
    """FedNova's mean: the mean of deltas divided by their effective steps, times the mean of effective steps.

        tau_eff sum_i p_i delta_i / ||a_i||_1,    tau_eff = sum_i p_i ||a_i||_1,    p_i = n_i / n

    Steps are counted relative to those of the first client that holds a tensor. If all clients take the same number of
    steps, all ratios are 1 and the result is the weighted mean, bit by bit.

    Source: Wang et al. 2020 (FedNova, arXiv 2007.07481), section 4.
    """

    name: Literal["normalised"] = "normalised"

    @property
    def of_statistics(self) -> Weighted:
        """The weighted mean: a statistic does not grow with the number of steps."""
        return Weighted()

    def start(self, spec: ParamSpec) -> RunningNormalised:
        """Starts the mean of the class docstring."""
        return RunningNormalised()


class RunningMean:
    """An unfinished weighted mean.

    Args:
        weight: gives the weight of an update, > 0.
        change: changes a delta before it is added; None for no change.
    """

    def __init__(self, weight: Callable[[Update], float], change: Callable[[Params], Params] | None = None) -> None:
        self._weight, self._change = weight, change
        self._sum = WeightedSum()

    def add(self, update: Update) -> None:
        """See `Running.add`."""
        delta = update.delta if self._change is None else self._change(update.delta)
        self._sum.add(self._weight(update), delta)

    def finish(self, generator: Generator) -> Params:
        """See `Running.finish`; draws nothing."""
        return self._sum.mean()


class RunningNormalised:
    """An unfinished `Normalised` mean."""

    def __init__(self) -> None:
        self._sum = WeightedSum()
        self._unit: dict[str, float] = {}  # ||a_i||_1 of the first client that holds the tensor
        self._weighted_steps: dict[str, float] = {}  # sum_i n_i ||a_i||_1 in this unit

    def add(self, update: Update) -> None:
        """See `Running.add`."""
        scaled: Params = {}
        for name, tensor in update.delta.items():
            ratio = update.effective_steps / self._unit.setdefault(name, update.effective_steps)
            self._weighted_steps[name] = self._weighted_steps.get(name, 0.0) + update.num_examples * ratio
            scaled[name] = tensor if ratio == 1 else tensor.double() / ratio
        self._sum.add(update.num_examples, scaled)

    def finish(self, generator: Generator) -> Params:
        """See `Running.finish`; draws nothing."""
        tau_eff = {name: self._weighted_steps[name] / weight for name, weight in self._sum.weights.items()}
        return {name: mean * tau_eff[name] for name, mean in self._sum.mean().items()}


def _examples(update: Update) -> float:
    return update.num_examples


def _one(_update: Update) -> float:
    return 1
