"""FedAvg: the mean of the clients' deltas, weighted by their number of examples.

    w_{t+1} = w_t + server_lr * sum_i (n_i / n) delta_i

With server_lr = 1 this is the average of the clients' models (when every download is exact). Each tensor is
averaged over the clients that sent it.

Source: McMahan et al. 2017 (FedAvg, arXiv 1602.05629), Algorithm 1; the server learning rate as in Reddi et
al. 2021 (arXiv 2003.00295), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Generator

from fedelta.params import Params, ParamSpec, add, weighted_mean
from fedelta.settings import Settings
from fedelta.strategies.base import RoundPlan, State, Update


class FedAvg(Settings):
    """Uniform cohorts, everything travels, weighted mean.

    Args:
        clients_per_round: size of the cohort, drawn uniformly without replacement.
        num_rounds: length of the run.
        server_lr: factor of the mean delta.
        min_replies: fewest usable replies with which a round counts.
    """

    name: Literal["fedavg"] = "fedavg"
    clients_per_round: int = Field(default=8, ge=1)  # FedPEFT's headline setting: 8 of 64
    num_rounds: int = Field(default=50, ge=1)  # FedPEFT
    server_lr: float = Field(default=1.0, gt=0)  # McMahan et al.: the plain mean
    min_replies: int = Field(default=1, ge=1)  # our choice: a round counts if anyone answers

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Nothing to remember."""
        return {}

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; every shared tensor goes down and comes up."""
        order = torch.randperm(len(client_ids), generator=generator).tolist()
        cohort = sorted(client_ids[index] for index in order[: self.clients_per_round])
        everything = dict.fromkeys(cohort, spec.shared)
        return RoundPlan(round, download=everything, upload=everything)

    def update(self, state: State, params: Params, plan: RoundPlan, updates: Sequence[Update]) -> tuple[Params, State]:
        """The equation of the module docstring."""
        mean = weighted_mean((update.num_examples, update.delta) for update in updates)
        return add(params, mean, self.server_lr), state
