"""FedNova: clients that take more steps do not pull the server further than their share.

    w_{t+1} = w_t + server_lr a sum_i (n_i / n) delta_i / a_i,        a = sum_i (n_i / n) a_i

a_i is the length of client i's vector of step weights, ||a_i||_1: its number of steps for plain SGD, more with
momentum (`Sgd.effective_steps`). Clients that all take the same steps make this FedAvg.

Differs from the paper in one point: for AdamW, whose steps have no such weights, a_i is the number of steps; what
weight decay and FedProx add to the weights is left out.

Source: Wang et al. 2020 (FedNova, arXiv 2007.07481), Eq. 8 and 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Generator

from fedelta.params import Params, ParamSpec, add
from fedelta.strategies.base import RoundPlan, State, Update
from fedelta.strategies.cohort import Rounds, uniform


class FedNova(Rounds):
    """The mean of normalised deltas.

    Args:
        server_lr: factor of the step.
    """

    name: Literal["fednova"] = "fednova"
    server_lr: float = Field(default=1.0, gt=0)  # the paper has none
    memory: ClassVar[None] = None

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Nothing to remember."""
        return {}

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor goes down and comes up."""
        return uniform(self, round, client_ids, spec, generator)

    def update(self, state: State, params: Params, plan: RoundPlan, updates: Sequence[Update]) -> tuple[Params, State]:
        """The equation of the module docstring."""
        weighted_steps = sum(update.num_examples * update.effective_steps for update in updates)
        num_examples = sum(update.num_examples for update in updates)
        normalised = [
            # One division of two numbers that are equal when all clients take the same steps: exactly 1 then.
            replace(update, delta=_times(update.delta, weighted_steps / (num_examples * update.effective_steps)))
            for update in updates
        ]
        return add(params, self.mean.of(normalised), self.server_lr), state


def _times(delta: Params, factor: float) -> Params:
    return {name: tensor.double() * factor for name, tensor in delta.items()}
