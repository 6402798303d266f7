"""FedOpt: an adaptive optimizer on the server takes the mean delta for its gradient.

    Delta_t = mean of the clients' deltas
    m_t     = beta1 m_{t-1} + (1 - beta1) Delta_t
    v_t     = v_{t-1} + Delta_t^2                                              FedAdagrad
            = beta2 v_{t-1} + (1 - beta2) Delta_t^2                            FedAdam
            = v_{t-1} - (1 - beta2) Delta_t^2 sign(v_{t-1} - Delta_t^2)        FedYogi
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau),    eta = server_lr

m starts at 0 and v at tau^2, the least that Algorithm 2 allows, without bias correction, as in the paper. With a large
tau and eta in proportion to it this becomes FedAvg (server momentum alone is `FedAvgM`).

Source: Reddi et al. 2021 (Adaptive Federated Optimization, arXiv 2003.00295), Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Generator, Tensor

from fedelta.aggregation.means import Weighted
from fedelta.params import Params, ParamSpec, add
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State, uniform
from fedelta.strategies.cohort import ChosenMean, Rounds, filled

# Reddi et al.: Figure 2 for the learning rate, near the best of FedAdam on most tasks; section 5 for the others.
ServerLr = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Tau = Annotated[float, Field(gt=0)]


class FedAdagrad(Rounds):
    """Adagrad on the server.

    Args:
        mean: combines the deltas of a round.
        server_lr: eta; tune it together with the clients' learning rate.
        beta1: decay of the first moment.
        tau: added to the root of the second moment; the larger it is, the less adaptive the step.
    """

    name: Literal["fedadagrad"] = "fedadagrad"
    private: ClassVar[bool] = True
    mean: ChosenMean = Weighted()
    server_lr: ServerLr = 0.01
    beta1: Beta = 0.0
    tau: Tau = 1e-3

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Both moments of every tensor that is trained and travels."""
        return _moments(params, spec, self.tau)

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor travels both ways."""
        return uniform(self.clients_per_round, round, client_ids, spec, generator, sampling=self.sampling)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The equations of the module docstring; a tensor that no client sent keeps its moments."""
        return _step(self, state, params, combined.mean, self._second)

    def _second(self, previous: Tensor, square: Tensor) -> Tensor:
        return previous + square


class FedAdam(Rounds):
    """Adam on the server.

    Args:
        mean: combines the deltas of a round.
        server_lr: eta; tune it together with the clients' learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        tau: added to the root of the second moment; the larger it is, the less adaptive the step.
    """

    name: Literal["fedadam"] = "fedadam"
    private: ClassVar[bool] = True
    mean: ChosenMean = Weighted()
    server_lr: ServerLr = 0.01
    beta1: Beta = 0.9
    beta2: Beta = 0.99
    tau: Tau = 1e-3

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Both moments of every tensor that is trained and travels."""
        return _moments(params, spec, self.tau)

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor travels both ways."""
        return uniform(self.clients_per_round, round, client_ids, spec, generator, sampling=self.sampling)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The equations of the module docstring; a tensor that no client sent keeps its moments."""
        return _step(self, state, params, combined.mean, self._second)

    def _second(self, previous: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * previous + (1 - self.beta2) * square


class FedYogi(Rounds):
    """Yogi on the server: v rises or falls by (1 - beta2) Delta_t^2, whatever its value.

    Args:
        mean: combines the deltas of a round.
        server_lr: eta; tune it together with the clients' learning rate.
        beta1: decay of the first moment.
        beta2: sets how fast the second moment rises or falls.
        tau: added to the root of the second moment; the larger it is, the less adaptive the step.
    """

    name: Literal["fedyogi"] = "fedyogi"
    private: ClassVar[bool] = True
    mean: ChosenMean = Weighted()
    server_lr: ServerLr = 0.01
    beta1: Beta = 0.9
    beta2: Beta = 0.99
    tau: Tau = 1e-3

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Both moments of every tensor that is trained and travels."""
        return _moments(params, spec, self.tau)

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor travels both ways."""
        return uniform(self.clients_per_round, round, client_ids, spec, generator, sampling=self.sampling)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The equations of the module docstring; a tensor that no client sent keeps its moments."""
        return _step(self, state, params, combined.mean, self._second)

    def _second(self, previous: Tensor, square: Tensor) -> Tensor:
        return previous - (1 - self.beta2) * square * (previous - square).sign()


def _moments(params: Params, spec: ParamSpec, tau: float) -> State:
    return filled(params, spec, "first") | filled(params, spec, "second", tau**2)


def _step(
    optimizer: FedAdagrad | FedAdam | FedYogi,
    state: State,
    params: Params,
    mean: Params,
    second_moment: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Params, State]:
    """x_{t+1}, and the new moments; `second_moment` gives v_t from v_{t-1} and Delta_t^2."""
    step: Params = {}
    moments: State = {}
    for name, delta in mean.items():
        m = optimizer.beta1 * state[f"first/{name}"] + (1 - optimizer.beta1) * delta
        v = second_moment(state[f"second/{name}"], delta.square())
        step[name] = m / (v.sqrt() + optimizer.tau)
        moments |= {f"first/{name}": m, f"second/{name}": v}
    return add(params, step, optimizer.server_lr), state | moments
