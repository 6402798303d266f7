"""Products with large frozen matrices on a CPU, by the faster of the two libraries that PyTorch has for them.

PyTorch multiplies float32 matrices with MKL. oneDNN, which comes with it, takes 8 to 15% less time on an AMD processor
(AVX-512, one thread, 520 to 2,080 rows of 192 to 768 features) and rounds as MKL does. PyTorch's own compiler replaces
linear layers by this operation of oneDNN's too; it has no gradient, which is added here.
"""

from __future__ import annotations

from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# oneDNN is used from so many rows and multiplications on. A call takes 10 microseconds more than one of MKL, and the
# first with another number of rows a millisecond: with clients of many sizes and up to 1,088 rows of 193 features it
# lost 7%. With a large matrix fewer rows are worth it: a step of a Llama of width 256, with 600 to 900 rows, took 8%
# less time, and 1% less if its matrices of 256 x 256 were among them.
_MANY_ROWS, _FEW_ROWS = 1536, 128
_LARGE = 2**24
_LARGE_MATRIX = 160_000


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The linear layer x W^T + b without a gradient, [..., I] to [..., O]; W [O, I] may be a transposed matrix."""
    if not _is_large(x, weight, bias):
        return functional.linear(x, weight, bias)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class FrozenLinears(TorchFunctionMode):
    """A context in which frozen linear layers compute with `linear`, in whatever model; all others are left alone."""

    # Any: PyTorch hands over each of its functions with whatever it was called with.
    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = MappingProxyType({})
    ) -> Any:
        if func is functional.linear and not kwargs:
            x, weight, bias = (*args, None)[:3]
            if not (weight.requires_grad or (bias is not None and bias.requires_grad)) and _is_large(x, weight, bias):
                return _frozen(x, weight, bias)
        return func(*args, **kwargs)


class RowCount(TorchFunctionMode):
    """A context that notes the largest number of rows, `most`, that a linear layer is given."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    # Any: as above.
    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = MappingProxyType({})
    ) -> Any:
        if func is functional.linear:
            x = args[0] if args else kwargs["input"]
            self.most = max(self.most, x.numel() // max(1, x.shape[-1]))
        return func(*args, **kwargs)


def gains(module: nn.Module, num_rows: float = 2**12) -> bool:
    """Whether `module` has a frozen linear layer on a CPU that `FrozenLinears` computes faster.

    Args:
        module: any.
        num_rows: of a training step. If these are many, an evaluation has more.
    """
    rows = int(num_rows) if num_rows < _MANY_ROWS else 2**12
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    tensors = (tensor for layer in layers for tensor in layer.parameters(recurse=False))
    return any(not tensor.requires_grad and _may_be_large(tensor, rows) for tensor in tensors)


def _frozen(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` with the gradient of `x`, if one is needed."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return linear(x, weight, bias)
    # Rows, because oneDNN's operation gives a view for any other shape, and a model may write to no view of a function.
    y: Tensor = _Frozen.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]  # PyTorch's
    return y.view(*x.shape[:-1], y.shape[1])


class _Frozen(Function):
    """`linear` of rows [N, I], with the gradient of `x`, which has one too."""

    # Any: a context has the attributes that a function gives it.
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # As PyTorch's own layer keeps it: a model that computes activations again for the gradient may do so with that.
        ctx.save_for_backward(weight.T)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight_IO,) = ctx.saved_tensors
        return _frozen(grad, weight_IO, None), None, None


def _is_large(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.dtype == torch.float32
        and not x.is_nested
        and _may_be_large(weight, x.numel() // max(1, x.shape[-1]))
        and x.shape[-1] == weight.shape[-1]
        # oneDNN reads a bias as if it lay in one piece.
        and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype and bias.is_contiguous()))
        and not torch.is_autocast_enabled("cpu")
    )


def _may_be_large(weight: Tensor, num_rows: int) -> bool:
    return (
        num_rows >= (_FEW_ROWS if weight.numel() >= _LARGE_MATRIX else _MANY_ROWS)
        # A tensor of a library, such as a quantised one, brings its own product.
        and type(weight) in {Tensor, nn.Parameter}
        and weight.dim() == 2
        and weight.numel() * num_rows >= _LARGE
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and (weight.is_contiguous() or weight.T.is_contiguous())
        and _has_onednn()
    )


@cache
def _has_onednn() -> bool:
    """Whether PyTorch has oneDNN and this operation, and the processor is of a kind on which this was measured."""
    is_known = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
    # It is not part of PyTorch's public interface, so a release may lack it.
    has_operation = getattr(torch.ops.mkldnn, "_linear_pointwise", None) is not None
    return is_known and torch.backends.mkldnn.is_available() and has_operation
