"""HLoRA and FlexLoRA: the mean of the products, brought back to the rank of the pair by a truncated SVD.

    sum_i p_i B_i A_i = U S V^T,    B <- sqrt(3) U_R S_R,    A <- V_R^T / sqrt(3)

is the best pair of rank R, and its first r components are the best of rank r: a client of rank r gets these
(`tuning.rank_by_client`). The product is exact as long as the mean of the products has rank R; what the truncation
leaves out is lost.

The mean is never written down if the ranks of all clients together are small: with sum_i p_i B_i A_i = L K, where L has
the p_i B_i side by side and K the A_i one below the other, L = Q1 R1 and K^T = Q2 R2, the SVD of the small R1 R2^T
gives that of L K. Signs are chosen so that the largest element of every row of A is positive. A direction in which the
mean has nothing, such as all of them in a round in which no B has moved, gets a new random row of A, orthogonal to the
others, and zeros in B: as zeros in both it could never learn.

Our choice: a row of A gets the length that it is drawn with at first, 1 / sqrt(3) in the mean, because the length
decides how large a step in B is.

If clients agree in one factor, bit by bit, plain averaging is exact and is used, unless ranks differ.

Source: Bai et al. 2024 (FlexLoRA, arXiv 2402.11505); Liu et al. 2025 (HLoRA, arXiv 2503.00813).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from fedelta.aggregation.low_rank import Factors, Joined, Pair, agree, stacked

_LENGTH = 3**-0.5  # of a row that is Kaiming-uniform with a = sqrt 5
_NOTHING = 1e-7  # a singular value below this share of the largest is a rounding error of float32


class Hlora(Factors):
    """Truncates the mean of the products to the rank of the pair."""

    name: Literal["hlora", "flexlora"] = "hlora"
    joins: ClassVar[bool] = True

    def join(self, pairs: Sequence[Pair], generator: Generator, *, ordered: bool) -> Joined | None:
        """The truncated SVD of the module docstring."""
        if not ordered and agree(pairs):
            return None
        rank, (k_SI, l_OS) = pairs[0].a_RI.shape[0], stacked(pairs)
        u_OR, s_R, v_RI = (part for part in _svd(l_OS, k_SI))
        count = min(rank, int((s_R > _NOTHING * s_R.max()).sum())) if s_R.numel() else 0
        v_RI, signs = _signed(v_RI[:count])
        a_RI = _LENGTH * torch.cat([v_RI, _fresh(rank - count, v_RI, generator)])
        b_OR = l_OS.new_zeros(l_OS.shape[0], rank)
        b_OR[:, :count] = u_OR[:, :count] * (signs * s_R[:count] / _LENGTH)
        return Joined(a_RI, b_OR)


def _svd(l_OS: Tensor, k_SI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [O, m], S [m] and V^T [m, I] of L K, singular values descending."""
    if l_OS.shape[1] >= min(l_OS.shape[0], k_SI.shape[1]):
        u, s, v = torch.linalg.svd(l_OS @ k_SI, full_matrices=False)
        return u, s, v
    (q1, r1), (q2, r2) = torch.linalg.qr(l_OS), torch.linalg.qr(k_SI.T)
    u, s, v = torch.linalg.svd(r1 @ r2.T)
    return q1 @ u, s, v @ q2.T


def _signed(v_RI: Tensor) -> tuple[Tensor, Tensor]:
    """The rows with a positive largest element, and the sign that each was multiplied with."""
    largest = v_RI.gather(1, v_RI.abs().max(1, keepdim=True).indices).squeeze(1)
    signs = torch.where(largest < 0, -1.0, 1.0).to(v_RI)
    return v_RI * signs.unsqueeze(1), signs


def _fresh(num: int, v_RI: Tensor, generator: Generator) -> Tensor:
    """`num` random rows of norm 1, orthogonal to each other and to the rows `v_RI`."""
    if not num:
        return v_RI[:0]
    drawn = torch.randn(num, v_RI.shape[1], generator=generator, dtype=torch.float64)
    drawn -= drawn @ v_RI.T @ v_RI
    rows: Tensor = torch.linalg.qr(drawn.T)[0].T
    return rows
