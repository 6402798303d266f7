"""Means that need nothing but sums.

`Weighted`, `Uniform` and `Clipped` are values of `strategy.mean`, for FedAvg and every server optimizer; FedNova and
SCAFFOLD have means of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Generator

from fedelta.aggregation.base import Mean, Update
from fedelta.params import Params, ParamSpec, WeightedSum, norm


class Weighted(Mean):
    """The mean weighted by `num_examples`.

    Source: McMahan et al. 2017 (FedAvg, arXiv 1602.05629), Algorithm 1.
    """

    name: Literal["weighted"] = "weighted"

    @property
    def of_statistics(self) -> Weighted:
        """The same."""
        return self

    def start(self, spec: ParamSpec) -> RunningMean:
        """sum_i n_i delta_i / sum_i n_i."""
        return RunningMean(_examples)


class Uniform(Mean):
    """The mean in which every client counts the same, whatever the number of its examples."""

    name: Literal["uniform"] = "uniform"

    @property
    def of_statistics(self) -> Uniform:
        """The same."""
        return self

    def start(self, spec: ParamSpec) -> RunningMean:
        """sum_i delta_i / M."""
        return RunningMean(_one)


class UniformDeltas(Mean):
    """The uniform mean of deltas, as SCAFFOLD's equations have it; statistics are weighted by their examples."""

    name: Literal["uniform-deltas"] = "uniform-deltas"

    @property
    def of_statistics(self) -> Weighted:
        """A mean and a variance are over examples."""
        return Weighted()

    def start(self, spec: ParamSpec) -> RunningMean:
        """sum_i delta_i / M."""
        return RunningMean(_one)


class Clipped(Mean):
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

    def start(self, spec: ParamSpec) -> RunningMean:
        """Weighted mean of delta_i / max(1, ||delta_i|| / max_norm)."""
        return RunningMean(_examples, self._clip)

    def _clip(self, delta: Params) -> Params:
        shrink = 1 / max(1.0, norm(delta) / self.max_norm)
        return {name: tensor.double() * shrink for name, tensor in delta.items()}


class Normalised(Mean):
    """FedNova's mean: of deltas divided by how many steps went into each, times the mean number of steps.

        a sum_i (n_i / n) delta_i / a_i,        a = sum_i (n_i / n) a_i

    Clients that all take the same steps make this the weighted mean to the last bit: steps are counted in units of
    those of the first client that holds a tensor.

    Source: Wang et al. 2020 (FedNova, arXiv 2007.07481), section 4.
    """

    name: Literal["normalised"] = "normalised"

    @property
    def of_statistics(self) -> Weighted:
        """Not normalised: a statistic is no sum of steps."""
        return Weighted()

    def start(self, spec: ParamSpec) -> RunningNormalised:
        """See the class."""
        return RunningNormalised()


class RunningMean:
    """A weighted mean under way.

    Args:
        weight: of an update, > 0.
        change: of a delta, before it is added.
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
    """FedNova's mean under way."""

    def __init__(self) -> None:
        self._sum = WeightedSum()
        self._unit: dict[str, float] = {}  # steps of the first client that held the tensor
        self._steps: dict[str, float] = {}  # sum_i n_i a_i in these units

    def add(self, update: Update) -> None:
        """See `Running.add`."""
        scaled: Params = {}
        for name, tensor in update.delta.items():
            length = update.effective_steps / self._unit.setdefault(name, update.effective_steps)
            self._steps[name] = self._steps.get(name, 0.0) + update.num_examples * length
            scaled[name] = tensor if length == 1 else tensor.double() / length
        self._sum.add(update.num_examples, scaled)

    def finish(self, generator: Generator) -> Params:
        """See `Running.finish`; draws nothing."""
        lengths = {name: self._steps[name] / weight for name, weight in self._sum.weights.items()}
        return {name: mean * lengths[name] for name, mean in self._sum.mean().items()}


def _examples(update: Update) -> float:
    return update.num_examples


def _one(_update: Update) -> float:
    return 1
