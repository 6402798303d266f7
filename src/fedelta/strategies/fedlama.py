"""FedLAMA: layers on which clients agree are averaged only in every phi-th round.

A round is tau local steps (tau' in the paper). Groups with interval 1 are averaged after every round, all groups after
every phi-th round; then new intervals are chosen. With the groups sorted by ascending unit discrepancy d_l
(windows.py),

    delta_l  = sum_{j <= l} d_j dim(u_j) / sum_j d_j dim(u_j)                         (Eq. 3)
    lambda_l = sum_{j <= l} dim(u_j) / sum_j dim(u_j)                                 (Eq. 4)

the groups with delta_l < 1 - lambda_l get interval phi, the others 1. The paper's pseudo-code has delta_l < lambda_l
instead, which holds for nearly every group; its text, its Fig. 1 and its code have 1 - lambda_l.

The cost of a run is sum_l dim(u_l) kappa_l, where kappa_l counts how often group l was averaged (Eq. 9).
`relative_cost` in `summary.json` is its ratio to the cost of averaging every group in every round.

With phi = 1 this is FedAvg, bit by bit. The discrepancy of a group is unknown until two clients have sent it in the
same round; until then the group keeps its interval. With client-level privacy it is estimated from noisy sums.

Differs from the authors' code: the weight of a client is its number of examples (`mean.name = "uniform"` for equal
weights); biases, norms and their running statistics travel with the kernel before them; intervals are first chosen
after phi rounds, as in Algorithm 1.

Source: Lee et al. 2023 (FedLAMA, arXiv 2110.10302), Algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from fedelta.params import Params, ParamSpec
from fedelta.strategies import windows
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State
from fedelta.strategies.windows import Windows


class FedLama(Windows):
    """Averages each group at interval 1 or phi, chosen by discrepancy.

    Args:
        crossing: whether the first group with delta_l >= 1 - lambda_l gets interval phi too.
    """

    name: Literal["fedlama"] = "fedlama"
    private: ClassVar[bool] = True
    # As in the authors' code. The paper's costs on FEMNIST are possible only so: there one layer is 97 % of the model.
    crossing: Literal["included", "excluded"] = "included"

    def init(self, params: Params, spec: ParamSpec) -> State:
        """The state before round 1, in which every group has interval 1."""
        return windows.start(spec)

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """See `windows.plan`."""
        return windows.plan(self, state, round, client_ids, spec=spec, generator=generator)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        """Adds the mean deltas; at the end of a window chooses intervals by Algorithm 2."""
        params, state = windows.update(self, state, params, plan=plan, combined=combined, spec=spec)
        is_measured = state["num_measured"] > 0
        if windows.place(self, plan.round).is_last and is_measured.any():
            sizes = torch.tensor(list(spec.sizes.values()))
            is_slow = curves(state["unit_discrepancy"][is_measured], sizes[is_measured]).below(self.crossing)
            intervals = state["interval_rounds"].clone()
            intervals[is_measured] = torch.where(is_slow, self.phi, 1)
            state |= {"interval_rounds": intervals}
        return params, state


@dataclass(frozen=True)
class Curves:
    """delta_l and 1 - lambda_l (Eq. 3 and 4) of G groups, sorted by ascending unit discrepancy.

    Args:
        order: [G], indices that sort the groups; groups with equal values stay in the order of the model.
        delta: [G], delta_l: share of the discrepancy in the first l groups.
        one_minus_lambda: [G], 1 - lambda_l: share of the parameters in all other groups.
    """

    order: Tensor
    delta: Tensor
    one_minus_lambda: Tensor

    def below(self, crossing: Literal["included", "excluded"]) -> Tensor:
        """Whether each group lies below the crossing of the curves, or at it if "included": [G], in model order."""
        # delta rises and 1 - lambda falls, so the groups below the crossing are the first ones.
        num_below = int((self.delta < self.one_minus_lambda).sum())
        is_below = torch.zeros(len(self.order), dtype=torch.bool)
        is_below[self.order[: num_below + (crossing == "included")]] = True
        return is_below


def curves(unit_discrepancy: Tensor, sizes: Tensor) -> Curves:
    """The two curves of Algorithm 2; delta is zero if all discrepancies are.

    Args:
        unit_discrepancy: [G], d_l of Eq. 2.
        sizes: [G], dim(u_l).
    """
    order = unit_discrepancy.argsort(stable=True)
    discrepancies = (unit_discrepancy * sizes)[order].cumsum(0)
    num_scalars = sizes[order].double().cumsum(0)
    # Not zero, so that clients that agree exactly give 0 and not NaN.
    total = discrepancies[-1].clamp(min=torch.finfo(torch.float64).tiny)
    return Curves(order, discrepancies / total, 1 - num_scalars / num_scalars[-1])
