"""SCAFFOLD: control variates take out of every local step what a client's data pull away from the mean.

Client i, in every step, with the server's control variate c and its own c_i:

    y <- y - lr (g(y) + c - c_i)

and at the end of the round (option II of the paper), K steps later:

    c_i+ = c_i - c + (w - y) / (K lr);    it sends y - w and c_i+ - c_i

Server, for the cohort S of N clients:

    w <- w + server_lr mean_S(y - w);    c <- c + |S| / N mean_S(c_i+ - c_i)

Control variates exist for what is tuned alone, so the payload is twice that of FedAvg; in the ledger they are
groups of their own, `control/GROUP`. While every control variate is zero, as in round 1, and all clients have as many
examples, this is FedAvg. Means are not weighted by examples: with weights that change from cohort to cohort c would not
stay the mean of the c_i. For the same reason there is no robust mean, and a client takes over c_i+ only when its reply
was accepted, and as it was decoded.

Differs from the paper in one point: with momentum K is `Sgd.effective_steps`, so that c_i+ stays a mean of gradients.
It comes from w - y, which float32 holds to 7 digits of w: at a learning rate near zero little of it is left.

Every client that ever took part remembers as much as is tuned, in a file of its own; only those of a round are read.

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
from fedelta.strategies.base import Combined, RoundPlan, State, Steering, uniform
from fedelta.strategies.cohort import Rounds, cohort_problems

_PREFIX = "control/"


class Controls:
    """The client's side: a `Steering` by its control variate c_i, which it remembers under the names of c."""

    def extend(self, spec: ParamSpec) -> ParamSpec:
        """One control variate for each tensor that is trained and travels."""
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
        """The correction c - c_i."""
        held = {name: own for name, own in remembered.items() if name in received}
        return {name.removeprefix(_PREFIX): received[name] - own for name, own in held.items()}

    def beside(self, received: Params, delta: Params, step_length: float) -> Params:
        """c_i+ - c_i = -c - (y - w) / (K lr)."""
        controls = {name: tensor for name, tensor in received.items() if name.startswith(_PREFIX)}
        return {name: -c - delta[name.removeprefix(_PREFIX)] / step_length for name, c in controls.items()}

    def remember(self, remembered: Params, sent: Params) -> Params:
        """c_i+."""
        return {name: own + sent[name] if name in sent else own for name, own in remembered.items()}


class Scaffold(Rounds):
    """FedAvg with control variates.

    Args:
        server_lr: factor of the mean delta.
    """

    name: Literal["scaffold"] = "scaffold"
    server_lr: float = Field(default=1.0, gt=0)  # the paper's experiments
    steering: ClassVar[Steering] = Controls()
    mean: ClassVar[Aggregation] = UniformDeltas()

    def problems(self, context: Context) -> list[str]:
        """Those of every strategy, and an optimizer that does not follow the corrected gradient."""
        problems = cohort_problems(self, context)
        if context.get("client.optimizer.name") not in (None, "sgd"):
            problems.append(
                "`strategy.name` is 'scaffold', which corrects gradients; `client.optimizer.name` must be 'sgd'"
            )
        return problems

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Control variates c = 0."""
        return dict(self.steering.start(spec))

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor and c go down, and their changes come up."""
        return uniform(self.clients_per_round, round, client_ids, self.steering.extend(spec), generator)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: Combined, spec: ParamSpec
    ) -> tuple[Params, State]:
        """Both of the server's equations of the module docstring."""
        # A sum over those of the cohort that hold a tensor, by all who hold it.
        controls = {name: mean * _share(name, combined, plan) for name, mean in combined.mean.items() if name in state}
        delta = {name: mean for name, mean in combined.mean.items() if name not in controls}
        return add(params, delta, self.server_lr), add(state, controls)


def _share(name: str, combined: Combined, plan: RoundPlan) -> float:
    num_holders = plan.num_clients if plan.num_holders is None else plan.num_holders[name]
    return sum(name in plan.upload[client_id] for client_id in combined.client_ids) / num_holders
