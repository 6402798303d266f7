"""FedAvg: the mean of the clients' deltas, weighted by their number of examples; FedAvgM adds server momentum.

    v_t     = beta v_{t-1} + sum_i (n_i / n) delta_i,    beta = momentum
    w_{t+1} = w_t + eta v_t,                             eta = server_lr

With beta = 0 and eta = 1 this is the average of the clients' models (if the codec of downloads is exact). Each tensor
is averaged over the clients that sent it.

Source: McMahan et al. 2017 (FedAvg, arXiv 1602.05629), Algorithm 1; the server learning rate as in Reddi et
al. 2021 (arXiv 2003.00295), Algorithm 1; the momentum of Hsu et al. 2019 (arXiv 1909.06335), section 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Generator

from fedelta.aggregation.means import Weighted
from fedelta.params import Params, ParamSpec, add
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State, uniform
from fedelta.strategies.cohort import ChosenMean, Rounds, filled


class FedAvg(Rounds):
    """Adds the mean delta to the server params; every tensor travels in every round.

    Args:
        mean: combines the deltas of a round.
        server_lr: eta, factor of the mean delta.
    """

    name: Literal["fedavg"] = "fedavg"
    private: ClassVar[bool] = True
    mean: ChosenMean = Weighted()
    server_lr: float = Field(default=1.0, gt=0)  # McMahan et al.: the plain mean

    def init(self, params: Params, spec: ParamSpec) -> State:
        """An empty state."""
        return {}

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor travels both ways."""
        return uniform(self.clients_per_round, round, client_ids, spec, generator, sampling=self.sampling)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        """w_{t+1} of the module docstring, with beta = 0."""
        return add(params, combined.mean, self.server_lr), state


class FedAvgM(Rounds):
    """FedAvg with momentum on the server.

    Args:
        mean: combines the deltas of a round.
        server_lr: eta, factor of the velocity.
        momentum: beta, share of the velocity that is kept from round to round; 0 is FedAvg.
    """

    name: Literal["fedavgm"] = "fedavgm"
    private: ClassVar[bool] = True
    mean: ChosenMean = Weighted()
    server_lr: float = Field(default=1.0, gt=0)  # Hsu et al.
    momentum: float = Field(default=0.9, ge=0, lt=1)  # Hsu et al.: 0.9 and more; Reddi et al. 0.9

    def init(self, params: Params, spec: ParamSpec) -> State:
        """A velocity of zero for every tensor that is trained and travels."""
        return filled(params, spec, "velocity")

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor travels both ways."""
        return uniform(self.clients_per_round, round, client_ids, spec, generator, sampling=self.sampling)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The equations of the module docstring; a tensor that no client sent keeps its velocity."""
        velocity = {name: self.momentum * state[f"velocity/{name}"] + mean for name, mean in combined.mean.items()}
        moved = add(params, velocity, self.server_lr)
        return moved, state | {f"velocity/{name}": tensor for name, tensor in velocity.items()}
