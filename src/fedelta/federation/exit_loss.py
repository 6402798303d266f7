"""The loss of a step in which each client learns at exits of its own.

    deepest, random:  CE_e of the one exit
    sum:              sum_e CE_e
    distill:          sum_e CE_e + w_t sum_e KL(p_best || p_e),   w_t = exp(-5 (1 - min(t, 300) / 300)^2) in round t

with CE_e the cross-entropy at exit e, and the best exit that with the lowest running mean of its cross-entropy, which
begins anew for every client and round.

Source: Liu et al. 2022 (Accumulator, arXiv 2212.04084) for one exit a batch; Lee et al. 2024 (ReeFL, arXiv 2405.14791)
for the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fedelta.federation.tiers import ExitSettings

_DISTILLATION_ROUNDS = 300  # ReeFL: until then the weight of the teacher grows
_KEPT = 0.8  # ReeFL: share of the old value in the running mean of an exit's loss


class ExitLoss:
    """The loss of one step over the exits that each lane learns at.

    Shapes: E exits, A lanes, B samples of a lane, C classes.

    Args:
        settings: which exits, and how.
        round: number of the round, from 1.
    """

    def __init__(self, settings: ExitSettings, round: int) -> None:
        self._settings = settings
        progress = min(round, _DISTILLATION_ROUNDS) / _DISTILLATION_ROUNDS
        self._weight = math.exp(-5 * (1 - progress) ** 2)

    def chosen(self, depth: int, draw: Callable[[int], int]) -> tuple[int, ...]:
        """The exits of a lane for this step, from 1; `draw(n)` is a number from 0 to n - 1."""
        exits = tuple(self._settings.answers(depth))
        return (exits[draw(depth)],) if self._settings.train == "random" else exits

    def of(
        self, logits_EABC: Tensor, labels_AB: Tensor, weights_AB: Tensor, chosen_EA: Tensor, running_EA: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is minimised [A], and the mean cross-entropy over a lane's exits [A], in nats per example.

        Args:
            logits_EABC: of the exits that any lane chose.
            labels_AB: classes.
            weights_AB: of the samples; they sum to one in each lane.
            chosen_EA: 1 where a lane learns at an exit, 0 elsewhere.
            running_EA: running mean of the cross-entropy of each exit, NaN before its first; changed in place.
        """
        num_exits = len(logits_EABC)
        losses_EAB = functional.cross_entropy(
            logits_EABC.flatten(0, 2), labels_AB.expand(num_exits, -1, -1).flatten(), reduction="none"
        ).view(num_exits, *labels_AB.shape)
        losses_EA = (losses_EAB * weights_AB).sum(2)
        # Not a product: a loss that is infinite where nobody asked would make NaN of it.
        total_A = torch.where(chosen_EA > 0, losses_EA, 0.0).sum(0)
        mean_A = total_A.detach() / chosen_EA.sum(0)
        if self._settings.train == "distill" and num_exits > 1:
            found = losses_EA.detach()
            running_EA.copy_(torch.where(running_EA.isnan(), found, _KEPT * running_EA + (1 - _KEPT) * found))
            total_A = total_A + self._weight * _divergence(logits_EABC, weights_AB, running_EA.argmin(0))
        return total_A, mean_A


def _divergence(logits_EABC: Tensor, weights_AB: Tensor, best_A: Tensor) -> Tensor:
    """sum_e KL(p_best || p_e) by lane [A]; the best exit teaches and does not learn from the others."""
    log_EABC = functional.log_softmax(logits_EABC, dim=-1)
    teacher_ABC = log_EABC[best_A, torch.arange(len(best_A), device=best_A.device)].detach()
    divergence_EAB = (teacher_ABC.exp() * (teacher_ABC - log_EABC)).sum(-1)
    return (divergence_EAB * weights_AB).sum((0, 2))
