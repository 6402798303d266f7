"""Frozen linear layers: the values and gradients of PyTorch's own linear layers, by oneDNN where they are large."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fedelta.models import frozen
from fedelta.models.frozen import FrozenLinears, RowCount, gains
from fedelta.seeds import stream


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the weights that oneDNN multiplies with; products are large from 1,000 multiplications on."""
    monkeypatch.setattr(frozen, "_LARGE", 1000)
    monkeypatch.setattr(frozen, "_MANY_ROWS", 2)
    shapes: list[tuple[int, ...]] = []
    operation = torch.ops.mkldnn._linear_pointwise

    def record(x: Tensor, weight: Tensor, *others: object) -> Tensor:
        shapes.append(tuple(weight.shape))
        return operation(x, weight, *others)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", record)
    return shapes


def random(*shape: int, part: int = 0) -> Tensor:
    return torch.randn(shape, generator=stream(0, "frozen", part))


needs_onednn = pytest.mark.skipif(not frozen._has_onednn(), reason="PyTorch without oneDNN, or another processor")

LAYERS: dict[str, Callable[[], tuple[Tensor, Tensor | None]]] = {
    "with a bias": lambda: (random(24, 16), random(24)),
    "without a bias": lambda: (random(24, 16), None),
    "transposed": lambda: (random(16, 24).T, random(24)),
}


@needs_onednn
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shape", [(40, 16), (8, 5, 16)])
def test_values_and_gradients_are_those_of_pytorch(layer: str, shape: tuple[int, ...], calls: list[tuple[int, ...]]):
    weight, bias = LAYERS[layer]()
    results = []
    for context in (FrozenLinears, lambda: torch.autograd.profiler.record_function("plain")):
        x = random(*shape, part=1).requires_grad_()
        with context():
            y = functional.linear(x, weight, bias)
        (grad,) = torch.autograd.grad(y, x, random(*y.shape, part=2))
        results.append((y, grad))
    (y, grad), (plain_y, plain_grad) = results
    torch.testing.assert_close(y, plain_y, rtol=1e-6, atol=5e-6)
    torch.testing.assert_close(grad, plain_grad, rtol=1e-6, atol=5e-6)
    assert calls == [(24, 16), (16, 24)]


@needs_onednn
@pytest.mark.parametrize("bias", [random(48)[::2], random(1).expand(24), random(1, 24), random(1)])
def test_a_bias_in_another_form_is_added_by_pytorch(bias: Tensor, calls: list[tuple[int, ...]]):
    x, weight = random(40, 16, part=1), random(24, 16)
    with FrozenLinears():
        y = functional.linear(x, weight, bias)
    torch.testing.assert_close(y, x @ weight.T + bias)
    assert calls == []


@needs_onednn
@pytest.mark.parametrize("shape", [(40, 16), (8, 5, 16)])
def test_a_model_may_write_to_the_outputs(shape: tuple[int, ...], calls: list[tuple[int, ...]]):
    x, layer = random(*shape).requires_grad_(), nn.Linear(16, 24).requires_grad_(False)
    with FrozenLinears():
        (grad,) = torch.autograd.grad(layer(x).relu_().sum(), x)
    (expected,) = torch.autograd.grad((x @ layer.weight.T + layer.bias).relu().sum(), x)
    torch.testing.assert_close(grad, expected)
    assert len(calls) == 2


@needs_onednn
def test_a_gradient_has_a_gradient(calls: list[tuple[int, ...]]):
    # Of f(x) = |W x|^2 / 2 the gradient is g = W^T W x, and that of |g|^2 / 2 is W^T W g.
    x, weight = random(40, 16, part=1).requires_grad_(), random(24, 16)
    with FrozenLinears():
        (grad,) = torch.autograd.grad(functional.linear(x, weight).square().sum() / 2, x, create_graph=True)
        (of_grad,) = torch.autograd.grad(grad.square().sum() / 2, x)
    torch.testing.assert_close(of_grad, (grad @ weight.T @ weight).detach(), rtol=1e-4, atol=1e-3)
    assert calls


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
def test_a_model_may_compute_its_activations_again_for_the_gradient(bias: bool, calls: list[tuple[int, ...]]):
    layers = nn.Sequential(nn.Linear(16, 24, bias=bias), nn.ReLU(), nn.Linear(24, 16, bias=bias)).requires_grad_(False)
    x = random(8, 5, 16).requires_grad_()
    with FrozenLinears():
        y = checkpoint(layers, x, use_reentrant=False)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad(layers(x).sum(), x)[0])
    assert (24, 16) in calls


@needs_onednn
def test_the_first_tokens_of_samples_need_not_lie_together(calls: list[tuple[int, ...]]):
    layer = nn.Linear(16, 24).requires_grad_(False)
    first = random(60, 5, 16)[:, :1]
    with FrozenLinears():
        y = layer(first)
    torch.testing.assert_close(y, layer(first.contiguous()), rtol=1e-6, atol=1e-6)
    assert calls == [(24, 16)]


@needs_onednn
@pytest.mark.parametrize("tuned", ["weight", "bias"])
def test_a_layer_that_is_tuned_is_left_alone(tuned: str, calls: list[tuple[int, ...]]):
    layer, x = nn.Linear(16, 24), random(40, 16)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == tuned)
    with FrozenLinears():
        layer(x).sum().backward()
    # The gradient of a bias is the number of rows, that of a weight the sum of the rows.
    expected = torch.full((24,), 40.0) if tuned == "bias" else x.sum(0).expand(24, 16)
    torch.testing.assert_close(layer.get_parameter(tuned).grad, expected)
    assert calls == []


class Packed(nn.Parameter):
    """A weight with a product of its own, like that of a library for quantised ones."""


@needs_onednn
def test_a_weight_of_another_kind_is_left_alone(calls: list[tuple[int, ...]]):
    layer, x = nn.Linear(16, 24, bias=False), random(4096, 16)
    layer.weight = Packed(random(24, 16), requires_grad=False)
    assert not gains(layer)
    with FrozenLinears():
        torch.testing.assert_close(layer(x).as_subclass(Tensor), x @ random(24, 16).T)
    assert calls == []


def test_small_products_other_types_and_autocast_are_left_alone(calls: list[tuple[int, ...]]):
    layer = nn.Linear(16, 24).requires_grad_(False)
    with FrozenLinears():
        layer(random(2, 16))  # 2 * 16 * 24 = 768 multiplications
        nn.Linear(1000, 2).requires_grad_(False)(random(1, 1000))  # one row
        layer.double()(random(40, 16).double())
        layer.bfloat16()(random(40, 16).bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            layer.float()(random(40, 16))
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(random(100, 17))
    assert calls == []


@needs_onednn
def test_without_a_gradient_there_is_nothing_to_keep(calls: list[tuple[int, ...]]):
    layer = nn.Linear(16, 24).requires_grad_(False)
    with FrozenLinears(), torch.no_grad():
        assert layer(random(40, 16).requires_grad_()).grad_fn is None
    assert len(calls) == 1


@needs_onednn
def test_a_model_gains_by_large_layers_that_are_frozen():
    # 64 * 64 * 4,096 rows = 2 ** 24 multiplications.
    large, small = nn.Linear(64, 64), nn.Linear(64, 63)
    assert not gains(nn.Sequential(large, small))
    assert not gains(nn.Sequential(small.requires_grad_(False)))
    assert gains(nn.Sequential(large.requires_grad_(False)))


@needs_onednn
def test_a_model_with_large_matrices_gains_with_fewer_rows():
    # 400 * 400 = 160,000; 127 rows are few for any matrix.
    large, small = (nn.Linear(400, size).requires_grad_(False) for size in (400, 399))
    assert [gains(large, rows) for rows in (127, 128, 1536)] == [False, True, True]
    assert [gains(small, rows) for rows in (128, 1535, 1536)] == [False, False, True]


def test_the_rows_that_linear_layers_get_are_counted():
    with RowCount() as count:
        functional.linear(torch.ones(2, 5, 3), torch.ones(4, 3))
        functional.linear(input=torch.ones(7, 3), weight=torch.ones(4, 3))
    assert count.most == 10
