"""SCAFFOLD: control variates correct local steps for the difference between a client's data and the average.

x is the server's model and c its control variate; y_i and c_i are those of client i. In every local step client i does

    y_i <- y_i - eta_l (g_i(y_i) - c_i + c),                                       eta_l = client.lr

and after K steps, with option II of the paper,

    c_i+ = c_i - c + (x - y_i) / (K eta_l);    it sends Delta y_i = y_i - x and Delta c_i = c_i+ - c_i

The server, for the cohort S out of N clients, does

    x <- x + eta_g / |S| sum_{i in S} Delta y_i,    c <- c + 1 / N sum_{i in S} Delta c_i,    eta_g = server_lr

Only tuned tensors have control variates, so a payload is twice that of FedAvg. In the ledger they are the groups
`control/GROUP`. As long as every control variate is zero, as in round 1, and all clients have equally many examples,
this is FedAvg. The means are not weighted by examples, because c has to stay the mean of all c_i while cohorts change.
For the same reason a robust mean is not possible, and a client replaces c_i only if its reply is accepted, with the
value that the server decodes.

With client-level privacy Delta y_i and Delta c_i are clipped together, and both means are over the number of clients
that were expected; c is then no longer the mean of all c_i, which are not clipped.

Differs from the paper: with momentum K is `Sgd.effective_steps`, so that c_i+ is still a mean of gradients. For a very
small eta_l c_i+ is imprecise: x - y_i is a small difference of float32 numbers.

Every client that has taken part keeps as many scalars as are tuned, on disk; only those of the cohort are in memory.

Source: Karimireddy et al. 2020 (SCAFFOLD, arXiv 1910.06378), Algorithm 1 and Eq. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator

from fedelta.aggregation.base import Aggregation
from fedelta.aggregation.means import UniformDeltas
from fedelta.params import Params, ParamSpec, TensorSpec, add
from fedelta.settings import Context
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State, Steering, uniform
from fedelta.strategies.cohort import Rounds, cohort_problems

_PREFIX = "control/"


class Controls:
    """The client's side, a `Steering`: a client remembers c_i under the names of c, `control/NAME`."""

    def extend(self, spec: ParamSpec) -> ParamSpec:
        """`spec`, followed by a control variate for each tensor that is trained and travels."""
        controls = {
            f"{_PREFIX}{name}": TensorSpec(tensor.shape, f"{_PREFIX}{tensor.group}", trained=False)
            for name, tensor in spec.tensors.items()
            if tensor.trained and tensor.shared
        }
        return ParamSpec({**spec.tensors, **controls})

    def start(self, spec: ParamSpec) -> Params:
        """c_i = 0."""
        extended = self.extend(spec).tensors
        return {name: torch.zeros(tensor.shape) for name, tensor in extended.items() if name.startswith(_PREFIX)}

    def offset(self, received: Params, remembered: Params) -> Params:
        """The correction -c_i + c."""
        # A shallow client does not receive the control variates of blocks that it does not run.
        return {
            name.removeprefix(_PREFIX): received[name] - c_i for name, c_i in remembered.items() if name in received
        }

    def beside(self, received: Params, delta: Params, step_length: float) -> Params:
        """Delta c_i = -c - (y_i - x) / (K eta_l)."""
        controls = {name: tensor for name, tensor in received.items() if name.startswith(_PREFIX)}
        return {name: -c - delta[name.removeprefix(_PREFIX)] / step_length for name, c in controls.items()}

    def remember(self, remembered: Params, sent: Params) -> Params:
        """c_i+ = c_i + Delta c_i."""
        return {name: c_i + sent[name] if name in sent else c_i for name, c_i in remembered.items()}


class Scaffold(Rounds):
    """FedAvg with control variates.

    Args:
        server_lr: eta_g, factor of the mean delta.
    """

    name: Literal["scaffold"] = "scaffold"
    server_lr: float = Field(default=1.0, gt=0)  # the paper's experiments
    steering: ClassVar[Steering] = Controls()
    mean: ClassVar[Aggregation] = UniformDeltas()
    private: ClassVar[bool] = True

    def problems(self, context: Context) -> list[str]:
        """Reports an impossible cohort, and an optimizer whose step is not proportional to the corrected gradient."""
        problems = cohort_problems(self, context)
        if context.get("client.optimizer.name") not in (None, "sgd"):
            problems.append(
                "`strategy.name` is 'scaffold', which corrects gradients; `client.optimizer.name` must be 'sgd'"
            )
        return problems

    def init(self, params: Params, spec: ParamSpec) -> State:
        """C = 0."""
        return dict(self.steering.start(spec))

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; x and c go down, Delta y_i and Delta c_i come up."""
        wire = self.steering.extend(spec)
        return uniform(self.clients_per_round, round, client_ids, wire, generator, sampling=self.sampling)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The server's equations of the module docstring."""
        # The mean of private updates is already over the number of senders that were expected.
        private_share = None if combined.noised is None else self.clients_per_round / plan.num_clients
        delta_c = {
            name: mean * (private_share or _share(name, combined, plan))
            for name, mean in combined.mean.items()
            if name in state
        }
        delta_y = {name: mean for name, mean in combined.mean.items() if name not in delta_c}
        return add(params, delta_y, self.server_lr), add(state, delta_c)


def _share(name: str, combined: CombinedUpdates, plan: RoundPlan) -> float:
    """|S| / N among the clients that hold tensor `name`."""
    num_holders = plan.num_clients if plan.num_holders is None else plan.num_holders[name]
    return sum(name in plan.upload[client_id] for client_id in combined.client_ids) / num_holders
