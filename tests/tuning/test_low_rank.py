"""The fused low-rank layer against the same layer in separate operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedelta.seeds import stream
from fedelta.tuning.low_rank import low_rank_linear

IN, OUT, RANK, SCALE = 6, 4, 2, 1.5


def drawn(number: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=stream(number), dtype=dtype)


def in_separate_operations(x: Tensor, frozen: tuple[Tensor, Tensor | None], pair: tuple[Tensor, Tensor], entries):
    base = torch.nn.functional.linear(x, *frozen)
    parts = zip(x.split(entries), *pair, strict=True)
    return base + torch.cat([SCALE * (part @ a.T) @ b.T for part, a, b in parts])


@pytest.mark.parametrize("inner", [(), (3,), (2, 3)], ids=["rows", "tokens", "windows of tokens"])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("entries", [[2, 2, 2], [3, 1, 2], [4]], ids=str)
def test_outputs_and_gradients_are_those_of_separate_operations(
    entries: list[int], has_bias: bool, inner: tuple[int, ...]
):
    frozen = drawn(1, OUT, IN), drawn(2, OUT) if has_bias else None
    results = []
    for layer in (low_rank_linear, in_separate_operations):
        x = drawn(0, sum(entries), *inner, IN).requires_grad_()
        pair = drawn(3, len(entries), RANK, IN).requires_grad_(), drawn(4, len(entries), OUT, RANK).requires_grad_()
        options = {"scale": SCALE, "entries": entries} if layer is low_rank_linear else {"entries": entries}
        y = layer(x, frozen, pair, **options)
        results.append([y, *torch.autograd.grad((y * drawn(5, *y.shape)).sum(), [x, *pair])])
    for fused, expected in zip(*results, strict=True):
        torch.testing.assert_close(fused, expected)


def test_an_input_without_a_gradient_gets_none():
    pair = drawn(3, 2, RANK, IN).requires_grad_(), drawn(4, 2, OUT, RANK).requires_grad_()
    y = low_rank_linear(drawn(0, 4, IN), (drawn(1, OUT, IN), None), pair, scale=SCALE, entries=[2, 2])
    grads = torch.autograd.grad(y.sum(), pair)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in pair]


def test_a_gradient_may_lie_otherwise_in_memory_than_the_output():
    # As attention hands it on: transposed.
    pair = drawn(3, 2, RANK, IN).requires_grad_(), drawn(4, 2, OUT, RANK).requires_grad_()
    y = low_rank_linear(drawn(0, 4, IN), (drawn(1, OUT, IN), None), pair, scale=SCALE, entries=[2, 2])
    strided = drawn(5, OUT, 4).T
    grads = [torch.autograd.grad(y, pair, grad, retain_graph=True) for grad in (strided, strided.contiguous())]
    for grad, expected in zip(*grads, strict=True):
        torch.testing.assert_close(grad, expected)


def test_under_autocast_it_computes_in_the_lower_precision_and_gives_gradients_of_the_type_of_the_tensors():
    x = drawn(0, 4, IN, dtype=torch.float32).requires_grad_()
    frozen = drawn(1, OUT, IN, dtype=torch.float32), drawn(2, OUT, dtype=torch.float32)
    pair = [drawn(3, 2, RANK, IN, dtype=torch.float32), drawn(4, 2, OUT, RANK, dtype=torch.float32)]
    for tensor in pair:
        tensor.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = low_rank_linear(x, frozen, tuple(pair), scale=SCALE, entries=[3, 1])
    assert y.dtype == torch.bfloat16
    grads = torch.autograd.grad(y.float().sum(), [x, *pair])
    assert {grad.dtype for grad in grads} == {torch.float32}
    exact = in_separate_operations(x, frozen, tuple(pair), [3, 1])
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.2)


def test_no_rows_give_no_rows_and_gradients_of_zero():
    # An expert to which no token is routed.
    pair = drawn(3, 1, RANK, IN).requires_grad_(), drawn(4, 1, OUT, RANK).requires_grad_()
    y = low_rank_linear(drawn(0, 0, IN), (drawn(1, OUT, IN), drawn(2, OUT)), pair, scale=SCALE, entries=[0])
    assert y.shape == (0, OUT)
    assert not any(grad.any() for grad in torch.autograd.grad(y.sum(), pair))
