"""Factors that are carried beside a pair: what the frozen layer has changed by in earlier rounds.

    h = W0 x + s B A x + s D C x

C [N, I] and D [O, N] have N = min(O, I) rows and columns, as many as any matrix needs, of which the first ones are in use.
Factors of a round are added below and beside them. When no place is left, the product is written down: the longer factor
becomes D C, and the other the identity (*dense form*). Both are exact; only the additions of the dense form round, in
float64 before the result is stored in float32.

A download has the rows that are in use in any layer, or of each layer the one factor of its dense form, whichever is less
(`federation/shapes.py`).

Shapes: O, I of the layer, N rows that there is space for, S rows that are added.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rows_in_use(c_NI: Tensor, d_ON: Tensor) -> int:
    """The number of rows of C, and columns of D, up to the last that is not zero in both."""
    used = (c_NI != 0).any(1) & (d_ON != 0).any(0)
    places = used.nonzero()
    return int(places.max()) + 1 if places.numel() else 0


def is_dense(c_NI: Tensor, d_ON: Tensor) -> bool:
    """Whether the factors are in dense form."""
    identity = c_NI if c_NI.shape[1] <= d_ON.shape[0] else d_ON
    return torch.equal(identity, torch.eye(len(identity), dtype=identity.dtype, device=identity.device))


def dense(c_NI: Tensor, d_ON: Tensor) -> tuple[Tensor, Tensor]:
    """The same product in dense form."""
    product_OI = d_ON @ c_NI
    identity = torch.eye(c_NI.shape[0], dtype=c_NI.dtype, device=c_NI.device)
    return (identity, product_OI) if c_NI.shape[1] <= d_ON.shape[0] else (product_OI, identity)


def carried_on(c_NI: Tensor, d_ON: Tensor, c_SI: Tensor, d_OS: Tensor) -> tuple[Tensor, Tensor]:
    """C and D with D' C' added to their product; all float64."""
    num_used, num_added = rows_in_use(c_NI, d_ON), len(c_SI)
    if num_used + num_added <= len(c_NI) and not is_dense(c_NI, d_ON):
        c, d = c_NI.clone(), d_ON.clone()
        c[num_used : num_used + num_added], d[:, num_used : num_used + num_added] = c_SI, d_OS
        return c, d
    product_OI = d_ON @ c_NI + d_OS @ c_SI
    identity = torch.eye(len(c_NI), dtype=c_NI.dtype)
    return (identity, product_OI) if c_NI.shape[1] <= d_ON.shape[0] else (product_OI, identity)
