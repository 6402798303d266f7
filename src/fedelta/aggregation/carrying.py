"""Factors that are carried beside a pair: what the frozen layer has changed by in earlier rounds.

    h = W0 x + s B A x + s D C x

C [N, I] and D [O, N] have N = min(O, I) rows and columns, as many as any matrix needs, of which the first ones are in
use. Factors of a round are added below and beside them. When no place is left, the product is written down: the longer
factor becomes D C, and the other the identity (*dense form*). Both are exact up to float32.

A download has the rows that are in use in any layer, or of each layer the one factor of its dense form (forms.py in
federation/); all layers get the dense form as soon as that is less.

Shapes: O, I of the layer, N rows that there is space for, S rows that are added.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def rows_in_use(c_NI: Tensor, d_ON: Tensor) -> int:
    """The number of rows of C, and columns of D, up to the last that is not zero in both."""
    used = (c_NI != 0).any(1) & (d_ON != 0).any(0)
    places = used.nonzero()
    return int(places.max()) + 1 if places.numel() else 0


def is_dense(c_NI: Tensor, d_ON: Tensor) -> bool:
    """Whether the factors are in dense form."""
    identity = c_NI if c_NI.shape[1] == len(c_NI) else d_ON
    return torch.equal(identity, torch.eye(len(identity), dtype=identity.dtype, device=identity.device))


def carried_on(before: tuple[Tensor, Tensor], added: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """C and D with D' C' added to their product; all float64."""
    (c_NI, d_ON), (c_SI, d_OS) = before, added
    start, end = rows_in_use(c_NI, d_ON), rows_in_use(c_NI, d_ON) + len(c_SI)
    if end > len(c_NI) or is_dense(c_NI, d_ON):
        return as_dense(c_NI, d_ON @ c_NI + d_OS @ c_SI)
    c_NI, d_ON = c_NI.clone(), d_ON.clone()
    c_NI[start:end], d_ON[:, start:end] = c_SI, d_OS
    return c_NI, d_ON


def as_dense(c_NI: Tensor, product_OI: Tensor) -> tuple[Tensor, Tensor]:
    """The dense form of a product, with the shapes of C and D."""
    identity = torch.eye(len(c_NI), dtype=c_NI.dtype)
    return (identity, product_OI) if product_OI.shape[1] == len(c_NI) else (product_OI, identity)


def in_fewest(layers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The same products, all in dense form if that is no more to send than the rows in use."""
    num_rows = max(rows_in_use(*pair) for pair in layers.values())
    in_rows = sum(min(num_rows, len(c_NI)) * (c_NI.shape[1] + len(d_ON)) for c_NI, d_ON in layers.values())
    if not num_rows or in_rows < sum(c_NI.shape[1] * len(d_ON) for c_NI, d_ON in layers.values()):
        return dict(layers)
    return {
        path: (c_NI, d_ON) if is_dense(c_NI, d_ON) else as_dense(c_NI, d_ON @ c_NI)
        for path, (c_NI, d_ON) in layers.items()
    }
