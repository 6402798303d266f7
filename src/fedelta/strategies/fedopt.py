"""FedOpt: the mean delta as a gradient for an adaptive optimizer on the server.

    Delta_t = mean of the clients' deltas
    m_t     = beta1 m_{t-1} + (1 - beta1) Delta_t
    v_t     = v_{t-1} + Delta_t^2                                              FedAdagrad
            = beta2 v_{t-1} + (1 - beta2) Delta_t^2                            FedAdam
            = v_{t-1} - (1 - beta2) Delta_t^2 sign(v_{t-1} - Delta_t^2)        FedYogi
    w_{t+1} = w_t + server_lr m_t / (sqrt(v_t) + tau)

m starts at 0 and v at tau^2, the least that Algorithm 2 allows; as there, nothing is corrected for that start.
For a large tau and server_lr in proportion this is FedAvg (server momentum alone: `FedAvgM`).

Source: Reddi et al. 2021 (Adaptive Federated Optimization, arXiv 2003.00295), Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Generator, Tensor

from fedelta.params import Params, ParamSpec, add
from fedelta.strategies.base import RoundPlan, State, Update
from fedelta.strategies.cohort import Rounds, uniform
from fedelta.strategies.fedavg import zeros


class FedOpt(Rounds):
    """An adaptive optimizer on the server: `fedadagrad`, `fedadam` or `fedyogi`.

    Args:
        server_lr: eta; wants tuning together with the clients' learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment; FedAdagrad has none.
        tau: how little adaptivity: added to the root of the second moment.
    """

    name: Literal["fedadagrad", "fedadam", "fedyogi"]
    server_lr: float = Field(default=0.01, gt=0)  # Reddi et al., Figure 2: near the best of FedAdam on most tasks
    beta1: float = Field(default=0.9, ge=0, lt=1)  # Reddi et al., section 5.1; 0 there for Adagrad
    beta2: float = Field(default=0.99, ge=0, lt=1)  # Reddi et al., section 5.1
    tau: float = Field(default=1e-3, gt=0)  # Reddi et al., section 5.2
    memory: ClassVar[None] = None

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Both moments of everything that is trained and travels."""
        return zeros(params, spec, "first") | zeros(params, spec, "second", self.tau**2)

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor goes down and comes up."""
        return uniform(self, round, client_ids, spec, generator)

    def update(self, state: State, params: Params, plan: RoundPlan, updates: Sequence[Update]) -> tuple[Params, State]:
        """The equations of the module docstring; a tensor that nobody sent keeps its moments."""
        step: Params = {}
        moments: State = {}
        for name, mean in self.mean.of(updates).items():
            first = self.beta1 * state[f"first/{name}"] + (1 - self.beta1) * mean
            second = self._second(state[f"second/{name}"], mean.square())
            step[name] = first / (second.sqrt() + self.tau)
            moments |= {f"first/{name}": first, f"second/{name}": second}
        return add(params, step, self.server_lr), state | moments

    def _second(self, before: Tensor, square: Tensor) -> Tensor:
        """v_t from v_{t-1} and Delta_t^2."""
        match self.name:
            case "fedadagrad":
                return before + square
            case "fedadam":
                return self.beta2 * before + (1 - self.beta2) * square
            case "fedyogi":
                return before - (1 - self.beta2) * square * (before - square).sign()
