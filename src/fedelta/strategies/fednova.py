"""FedNova: clients that take more steps do not pull the server further than their share.

    w_{t+1} = w_t + server_lr a sum_i (n_i / n) delta_i / a_i,        a = sum_i (n_i / n) a_i

a_i is the length of client i's vector of step weights, ||a_i||_1: its number of steps for plain SGD, more with
momentum (`Sgd.effective_steps`). Clients that all take the same steps make this FedAvg.

Differs from the paper in one point: for AdamW, whose steps have no such weights, a_i is the number of steps; what
weight decay and FedProx add to the weights is left out.

The server works a_i out of the number of examples and section `[client]`; nothing more travels. The mean is the
weighted one: a robust mean of normalised deltas would still be scaled by what the clients claim.

Source: Wang et al. 2020 (FedNova, arXiv 2007.07481), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Generator

from fedelta.params import Params, ParamSpec, add, select, weighted_mean
from fedelta.strategies.base import Mean, RoundPlan, State, Update
from fedelta.strategies.cohort import Rounds, uniform
from fedelta.strategies.means import Weighted


class FedNova(Rounds):
    """The mean of normalised deltas.

    Args:
        server_lr: factor of the step.
    """

    name: Literal["fednova"] = "fednova"
    server_lr: float = Field(default=1.0, gt=0)  # the paper has none
    memory: ClassVar[None] = None
    mean: ClassVar[Mean] = Weighted()

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Nothing to remember."""
        return {}

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor goes down and comes up."""
        return uniform(self, round, client_ids, spec, generator)

    def update(
        self, state: State, params: Params, plan: RoundPlan, updates: Sequence[Update], spec: ParamSpec
    ) -> tuple[Params, State]:
        """The equation of the module docstring."""
        mean: Params = {}
        for names, holders in _by_holders(updates):
            num_examples = sum(update.num_examples for update in holders)
            mean |= weighted_mean(
                (update.num_examples, _times(select(update.delta, names), _share(update, holders) / num_examples))
                for update in holders
            )
        return add(params, mean, self.server_lr), state


def _by_holders(updates: Sequence[Update]) -> list[tuple[list[str], list[Update]]]:
    """Names of tensors, and the updates that hold them: a mean is over these alone."""
    names: dict[tuple[int, ...], list[str]] = {}
    for name in dict.fromkeys(name for update in updates for name in update.delta):
        holders = tuple(place for place, update in enumerate(updates) if name in update.delta)
        names.setdefault(holders, []).append(name)
    return [(own, [updates[place] for place in places]) for places, own in names.items()]


def _share(own: Update, updates: Sequence[Update]) -> float:
    """sum_j n_j a_j / a_i; in quotients, so that with equal steps it is the number of examples to the last bit."""
    return sum(update.num_examples * (update.effective_steps / own.effective_steps) for update in updates)


def _times(delta: Params, factor: float) -> Params:
    return {name: tensor.double() * factor for name, tensor in delta.items()}
