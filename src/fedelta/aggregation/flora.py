"""FLoRA: the pairs of all clients are stacked, and added to the frozen layer; clients begin new pairs.

    W0 <- W0 + s [p_1 B_1, p_2 B_2, ...] [A_1; A_2; ...] = W0 + s sum_i p_i B_i A_i,    B <- 0,    A <- a new draw

exactly, whatever the ranks of clients are. What goes down grows with the cohort: the stacked factors of all earlier
rounds (carrying.py), until the whole change of the layer is smaller.

Differs from the paper: weights are in B alone, so that the product has them once; and clients of a cohort that were not
in earlier ones get the change of all rounds, which the paper's clients, all of them in every round, have added up
themselves.

Source: Wang et al. 2024 (FLoRA, arXiv 2409.05976).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Generator

from fedelta.aggregation.low_rank import Factors, Joined, Pair, stacked


class Flora(Factors):
    """Adds all pairs to the frozen layer, and begins a new one."""

    name: Literal["flora"] = "flora"
    joins: ClassVar[bool] = True
    carries: ClassVar[bool] = True

    def join(self, pairs: Sequence[Pair], generator: Generator, *, ordered: bool) -> Joined | None:
        """A new A, zeros for B, and the stacked factors without the rows that clients of lower rank lack."""
        below, beside = stacked(pairs)
        in_use = (below != 0).any(1) & (beside != 0).any(0)
        a_RI, b_OR = pairs[0].a_RI, pairs[0].b_OR
        bound = 1 / math.sqrt(a_RI.shape[1])  # Kaiming-uniform with a = sqrt 5, as for the first A
        drawn = torch.empty(a_RI.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        return Joined(drawn.double(), torch.zeros_like(b_OR), (below[in_use], beside[:, in_use]))
