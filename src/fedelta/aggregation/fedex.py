"""FedEx-LoRA: factors are averaged, and what that gets wrong is added to the frozen layer.

    A <- sum_i p_i A_i,    B <- sum_i p_i B_i
    W0 <- W0 + s (sum_i p_i B_i A_i - B A) = W0 + s sum_i p_i (B_i - B) (A_i - A)

so that the layer is exactly the mean of those of the clients. The residual has at most the rank of all pairs together,
and is carried as these factors (carrying.py): clients get it with every download, beside the pair.

If clients agree in one factor the residual is zero, and this is plain averaging, bit by bit.

Source: Singhal et al. 2024 (FedEx-LoRA, arXiv 2410.09432).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Generator

from fedelta.aggregation.low_rank import Factors, Joined, Pair, agree, averaged


class FedEx(Factors):
    """Averages factors, and adds the residual to the frozen layer."""

    name: Literal["fedex"] = "fedex"
    joins: ClassVar[bool] = True
    carries: ClassVar[bool] = True

    def join(self, pairs: Sequence[Pair], generator: Generator, *, ordered: bool) -> Joined | None:
        """The mean factors, and the factors of the residual."""
        if agree(pairs):
            return None
        a_RI, b_OR = averaged(pairs)
        below = torch.cat([pair.a_RI - a_RI for pair in pairs])
        beside = torch.cat([pair.share * (pair.b_OR - b_OR) for pair in pairs], dim=1)
        return Joined(a_RI, b_OR, (below, beside))
