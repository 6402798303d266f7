"""FedNova: deltas are divided by the number of local steps, so that a client with more steps does not count for more.

    x_{t+1} = x_t + eta tau_eff sum_i p_i delta_i / ||a_i||_1,    tau_eff = sum_i p_i ||a_i||_1,    p_i = n_i / n

a_i holds the weight of each of client i's gradients in its delta. ||a_i||_1 is the number of steps for plain SGD, and
larger with momentum (`Sgd.effective_steps`). eta is server_lr, 1 in the paper. If all clients take the same number of
steps, this is FedAvg.

Differs from the paper: for AdamW, whose steps have no such weights, ||a_i||_1 is the number of steps. The weights that
weight decay and FedProx would give are left out.

The server computes ||a_i||_1 from the number of examples and section `[client]`, so nothing more travels. Only the
weighted mean is allowed: a robust mean of normalised deltas would still be scaled by tau_eff, which depends on the
numbers of examples that clients claim.

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
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State, uniform
from fedelta.strategies.cohort import Rounds


class FedNova(Rounds):
    """Adds the mean of normalised deltas to the server params.

    Args:
        server_lr: eta, factor of the step.
    """

    name: Literal["fednova"] = "fednova"
    server_lr: float = Field(default=1.0, gt=0)  # the paper has none
    mean: ClassVar[Aggregation] = Normalised()

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
        """x_{t+1} of the module docstring."""
        return add(params, combined.mean, self.server_lr), state
