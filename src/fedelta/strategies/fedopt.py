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

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Generator, Tensor

from fedelta.aggregation.means import Weighted
from fedelta.params import Params, ParamSpec, add
from fedelta.strategies.base import Combined, RoundPlan, State, uniform
from fedelta.strategies.cohort import ChosenMean, Rounds, filled

# Reddi et al.: Figure 2 for the learning rate, near the best of FedAdam on most tasks; section 5 for the others.
ServerLr = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Tau = Annotated[float, Field(gt=0)]


class FedAdagrad(Rounds):
    """Adagrad on the server.

    Args:
        mean: how the deltas of a round become one.
        server_lr: eta; wants tuning together with the clients' learning rate.
        beta1: decay of the first moment.
        tau: how little adaptivity: added to the root of the second moment.
    """

    name: Literal["fedadagrad"] = "fedadagrad"
    mean: ChosenMean = Weighted()
    server_lr: ServerLr = 0.01
    beta1: Beta = 0.0
    tau: Tau = 1e-3

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Both moments of everything that is trained and travels."""
        return _moments(params, spec, self.tau)

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor goes down and comes up."""
        return uniform(self.clients_per_round, round, client_ids, spec, generator)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: Combined, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The equations of the module docstring; a tensor that nobody sent keeps its moments."""
        return _step(self, state, params, combined.mean, self._second)

    def _second(self, before: Tensor, square: Tensor) -> Tensor:
        return before + square


class FedAdam(Rounds):
    """Adam on the server.

    Args:
        mean: how the deltas of a round become one.
        server_lr: eta; wants tuning together with the clients' learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        tau: how little adaptivity: added to the root of the second moment.
    """

    name: Literal["fedadam"] = "fedadam"
    mean: ChosenMean = Weighted()
    server_lr: ServerLr = 0.01
    beta1: Beta = 0.9
    beta2: Beta = 0.99
    tau: Tau = 1e-3

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Both moments of everything that is trained and travels."""
        return _moments(params, spec, self.tau)

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor goes down and comes up."""
        return uniform(self.clients_per_round, round, client_ids, spec, generator)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: Combined, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The equations of the module docstring; a tensor that nobody sent keeps its moments."""
        return _step(self, state, params, combined.mean, self._second)

    def _second(self, before: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * before + (1 - self.beta2) * square


class FedYogi(Rounds):
    """Yogi on the server: its second moment changes by steps of one size, up or down.

    Args:
        mean: how the deltas of a round become one.
        server_lr: eta; wants tuning together with the clients' learning rate.
        beta1: decay of the first moment.
        beta2: 1 - beta2 is the size of the second moment's steps, in squared deltas.
        tau: how little adaptivity: added to the root of the second moment.
    """

    name: Literal["fedyogi"] = "fedyogi"
    mean: ChosenMean = Weighted()
    server_lr: ServerLr = 0.01
    beta1: Beta = 0.9
    beta2: Beta = 0.99
    tau: Tau = 1e-3

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Both moments of everything that is trained and travels."""
        return _moments(params, spec, self.tau)

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor goes down and comes up."""
        return uniform(self.clients_per_round, round, client_ids, spec, generator)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: Combined, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The equations of the module docstring; a tensor that nobody sent keeps its moments."""
        return _step(self, state, params, combined.mean, self._second)

    def _second(self, before: Tensor, square: Tensor) -> Tensor:
        return before - (1 - self.beta2) * square * (before - square).sign()


def _moments(params: Params, spec: ParamSpec, tau: float) -> State:
    return filled(params, spec, "first") | filled(params, spec, "second", tau**2)


def _step(
    optimizer: FedAdagrad | FedAdam | FedYogi,
    state: State,
    params: Params,
    mean: Params,
    second_moment: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Params, State]:
    """The last of the equations; `second_moment` is v_t from v_{t-1} and Delta_t^2."""
    step: Params = {}
    moments: State = {}
    for name, delta in mean.items():
        first = optimizer.beta1 * state[f"first/{name}"] + (1 - optimizer.beta1) * delta
        second = second_moment(state[f"second/{name}"], delta.square())
        step[name] = first / (second.sqrt() + optimizer.tau)
        moments |= {f"first/{name}": first, f"second/{name}": second}
    return add(params, step, optimizer.server_lr), state | moments
