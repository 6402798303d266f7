"""A frozen linear layer with a low-rank pair per lane, as one operation.

    y = x W^T + b + s (x A^T) B^T

As separate operations this takes twice the time of the frozen layer alone, because thin matrices make slow products
and every operation writes all of its rows. Here thin matrices have R rows, and not R columns: on a CPU A x^T takes half
the time of x A^T, and (A x^T) dy a fifth of the time of dy^T (x A^T). And the pair is added to y, and to the gradient
of x, in place.

Shapes: A lanes, N rows of all lanes, n rows of one lane, I in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from fedelta.models.frozen import linear


def low_rank_linear(
    x: Tensor,
    frozen: tuple[Tensor, Tensor | None],
    pair: tuple[Tensor, Tensor],
    *,
    scale: float,
    entries: Sequence[int],
) -> Tensor:
    """The layer x W^T + b + s (x A^T) B^T with A and B of each lane: [E, ..., I] to [E, ..., O].

    Under autocast it computes in the lower precision, as PyTorch's products do.

    Args:
        x: [E, ..., I], lane after lane.
        frozen: W [O, I] and b [O], which get no gradient.
        pair: A [A, R, I] and B [A, O, R] of the lanes in use.
        scale: s.
        entries: of each lane along the first axis of `x`; their sum is E.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    x_NI = x.flatten(0, -2).to(dtype)
    rows_per_entry = x.shape[1:-1].numel()
    tensors = (None if tensor is None else tensor.to(dtype) for tensor in (*frozen, *pair))
    with torch.autocast(device, enabled=False):
        rows = [num * rows_per_entry for num in entries]
        y_NO: Tensor = _LowRankLinear.apply(x_NI, *tensors, scale, rows)  # type: ignore[no-untyped-call]  # PyTorch's
    return y_NO.view(*x.shape[:-1], y_NO.shape[1])


class _LowRankLinear(Function):
    """`low_rank_linear` for rows [N, I], of which each lane has `rows`; all tensors have one type."""

    # Any: a context has the attributes that a function gives it.
    @staticmethod
    def forward(  # noqa: PLR0917 as PyTorch calls it
        ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_ARI: Tensor, b_AOR: Tensor, scale: float,
        rows: Sequence[int],
    ) -> Tensor:  # fmt: skip
        y_NO = linear(x_NI, weight_OI, bias_O)
        up_ARO = b_AOR.transpose(1, 2).mul(scale).contiguous()
        lows = []
        for lanes, (x_AnI, y_AnO) in _parts(rows, x_NI, y_NO):
            low_ARn = torch.bmm(a_ARI[lanes], x_AnI.transpose(1, 2))
            y_AnO.baddbmm_(low_ARn.transpose(1, 2), up_ARO[lanes])
            lows.append(low_ARn)
        ctx.save_for_backward(x_NI, weight_OI, a_ARI, up_ARO, *lows)
        ctx.scale, ctx.rows = scale, rows
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, a_ARI, up_ARO, *lows = ctx.saved_tensors
        grad_NO, of_a_ARI, of_up_ARO = grad_NO.contiguous(), torch.empty_like(a_ARI), torch.empty_like(up_ARO)
        # The first tuned layer of a model needs no gradient of its input.
        of_x_NI = linear(grad_NO, weight_OI.T) if ctx.needs_input_grad[0] else None
        parts = _parts(ctx.rows, x_NI, grad_NO, *([] if of_x_NI is None else [of_x_NI]))
        for low_ARn, (lanes, (x_AnI, grad_AnO, *of_x_AnI)) in zip(lows, parts, strict=True):
            of_low_ARn = torch.bmm(up_ARO[lanes], grad_AnO.transpose(1, 2))
            torch.bmm(of_low_ARn, x_AnI, out=of_a_ARI[lanes])
            torch.bmm(low_ARn, grad_AnO, out=of_up_ARO[lanes])
            for of_x in of_x_AnI:
                of_x.baddbmm_(of_low_ARn.transpose(1, 2), a_ARI[lanes])
        return of_x_NI, None, None, of_a_ARI, of_up_ARO.mul_(ctx.scale).transpose(1, 2), None, None


def _parts(rows: Sequence[int], *tensors_NF: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Lanes, and their rows of each of the tensors as [A, n, F]: all lanes if they have as many rows, or each alone."""
    if min(rows) == max(rows):
        yield slice(len(rows)), [tensor.view(len(rows), -1, tensor.shape[1]) for tensor in tensors_NF]
        return
    for lane, of_lane in enumerate(zip(*(tensor.split(list(rows)) for tensor in tensors_NF), strict=True)):
        yield slice(lane, lane + 1), [tensor.unsqueeze(0) for tensor in of_lane]
