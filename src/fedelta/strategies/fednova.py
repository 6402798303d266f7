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

from fedelta.aggregation.base import Aggregation
from fedelta.aggregation.means import Normalised
from fedelta.params import Params, ParamSpec, add
from fedelta.strategies.base import Combined, RoundPlan, State, uniform
from fedelta.strategies.cohort import Rounds


class FedNova(Rounds):
    """The mean of normalised deltas.

    Args:
        server_lr: factor of the step.
    """

    name: Literal["fednova"] = "fednova"
    server_lr: float = Field(default=1.0, gt=0)  # the paper has none
    mean: ClassVar[Aggregation] = Normalised()

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Nothing to remember."""
        return {}

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor goes down and comes up."""
        return uniform(self.clients_per_round, round, client_ids, spec, generator)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: Combined, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The equation of the module docstring."""
        return add(params, combined.mean, self.server_lr), state
