"""FedLAMA: layers whose clients disagree little travel only every phi-th time.

A round is tau local steps. After each, the groups with interval 1 are averaged; after every phi-th, all groups are, and
then the intervals are chosen anew. With the groups sorted by ascending unit discrepancy d_l (windows.py),

    delta_l = sum_{j <= l} d_j dim_j / sum_j d_j dim_j                                (Eq. 3)
    lambda_l = sum_{j <= l} dim_j / sum_j dim_j                                       (Eq. 4)

and the groups with delta_l < 1 - lambda_l get interval phi. The pseudo-code of the paper prints delta_l < lambda_l,
which holds for nearly every group; its text, its Fig. 1 and its code have 1 - lambda_l.

The cost of a run is sum_l dim_l kappa_l, with kappa_l the number of times that group l was averaged (Eq. 9);
`relative_cost` in `summary.json` is its share of what it would be had every group travelled in every round.
With phi = 1 this is FedAvg to the last bit. A group of which no discrepancy is known, because two clients never sent it
in one round, has no part in the choice and keeps its interval.

Differs from the authors' code: clients weigh by their examples (`mean.name = "uniform"` for equal weights), biases,
norms and their running statistics travel with the kernel before them, and the first choice of intervals is that of
Algorithm 1, after phi rounds.

Source: Lee et al. 2023 (FedLAMA, arXiv 2110.10302), Algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from fedelta.params import Params, ParamSpec
from fedelta.strategies import windows
from fedelta.strategies.base import Combined, RoundPlan, State
from fedelta.strategies.windows import Windows


class FedLama(Windows):
    """Layer-wise adaptive intervals.

    Args:
        crossing: whether the first group with delta_l >= 1 - lambda_l travels seldom, too.
    """

    name: Literal["fedlama"] = "fedlama"
    # As in the authors' code. The paper's costs on FEMNIST need it: there one layer is 97 % of the model.
    crossing: Literal["included", "excluded"] = "included"

    def init(self, params: Params, spec: ParamSpec) -> State:
        """Every group travels in every round."""
        return windows.start(spec)

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """See windows.py."""
        return windows.plan(self, state, round, client_ids, spec=spec, generator=generator)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: Combined, spec: ParamSpec
    ) -> tuple[Params, State]:
        """The mean of what came up; after a window, Algorithm 2."""
        params, state = windows.update(self, state, params, plan=plan, combined=combined, spec=spec)
        known = state["num_measured"] > 0
        if windows.place(self, plan.round).is_last and known.any():
            sizes = torch.tensor(list(spec.sizes.values()))
            seldom = curves(state["unit_discrepancy"][known], sizes[known]).below(self.crossing)
            intervals = state["interval_rounds"].clone()
            intervals[known] = torch.where(seldom, self.phi, 1)
            state |= {"interval_rounds": intervals}
        return params, state


@dataclass(frozen=True)
class Curves:
    """Eq. 3 and 4, for G groups sorted by ascending unit discrepancy.

    Args:
        order: [G], the groups so sorted; equal ones in the order of the model.
        delta: [G], share of the discrepancy of the first l groups.
        rest: [G], 1 - lambda: share of the parameters of the other groups.
    """

    order: Tensor
    delta: Tensor
    rest: Tensor

    def below(self, crossing: Literal["included", "excluded"]) -> Tensor:
        """[G] in the order of the model: whether a group is before the crossing, or at it."""
        count = int((self.delta < self.rest).sum())  # one curve rises, the other falls
        seldom = torch.zeros(len(self.order), dtype=torch.bool)
        seldom[self.order[: count + (crossing == "included")]] = True
        return seldom


def curves(unit_discrepancy: Tensor, sizes: Tensor) -> Curves:
    """The two curves of Algorithm 2; without any discrepancy delta is zero.

    Args:
        unit_discrepancy: [G], Eq. 2.
        sizes: [G], number of scalars of each group.
    """
    order = unit_discrepancy.argsort(stable=True)
    amounts = (unit_discrepancy * sizes)[order].cumsum(0)
    num_scalars = sizes[order].double().cumsum(0)
    total = amounts[-1].clamp(min=torch.finfo(torch.float64).tiny)
    return Curves(order, amounts / total, 1 - num_scalars / num_scalars[-1])
