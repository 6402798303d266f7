"""Recognises layers that compute exactly what their PyTorch class says, and linear layers of either orientation.

Only such layers may be edited, replaced or folded into. A subclass may do something else with the same weights:
standardise a kernel first, end in an activation, dequantise. So may a layer with hooks or parametrizations, such as
weight norm and spectral norm.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize

# Methods that together determine what a layer computes.
_METHODS = ("forward", "_conv_forward", "__call__")
# Linear layers of transformers that do not derive from `nn.Linear`, and whether their weight is transposed.
_OTHER_LINEAR = {"FalconLinear": False, "Conv1D": True}
# Packages whose tensors hold weights in fewer bits (quantised.py).
_QUANTISERS = frozenset({"torchao", "bitsandbytes"})


def oddity(layer: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why `layer`, an instance of `kind`, may not compute what `kind` does with its tensors; None if it does.

    Completes the sentence "it ...". Subclasses that leave the computation unchanged are accepted.
    """
    overridden = [
        name for name in _METHODS if _method(type(layer), name) is not _method(kind, name) or name in vars(layer)
    ]
    if overridden:
        return f"is a {type(layer).__name__} that overrides `{overridden[0]}`"
    if parametrize.is_parametrized(layer):
        return "is parametrized, for example by weight norm or spectral norm"
    if layer._forward_pre_hooks or layer._forward_hooks:
        return "has forward hooks, for example of an older weight norm or spectral norm"
    if any(name not in layer._parameters for name in ("weight", "bias")):
        return f"is a {type(layer).__name__} whose weight or bias is not a parameter"
    return None


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `layer` is an instance of `kind` and computes what `kind` does."""
    return isinstance(layer, kind) and oddity(layer, kind) is None


def is_quantised(layer: nn.Module) -> bool:
    """Whether `layer` is linear, with a weight that is stored in fewer bits."""
    weight = layer._parameters.get("weight")
    return weight is not None and is_few_bits(weight)


def is_few_bits(weight: Tensor) -> bool:
    """Whether a tensor is one of a library for weights in fewer bits."""
    return type(weight).__module__.partition(".")[0] in _QUANTISERS


def is_linear(layer: nn.Module) -> bool:
    """Whether `layer` computes `x W^T + b`, or `x W + b` (transformers' `Conv1D`)."""
    if is_quantised(layer):
        return True
    if _transformers_name(layer) in _OTHER_LINEAR:
        return oddity(layer, type(layer)) is None
    return is_plain(layer, nn.Linear)


def is_transposed(layer: nn.Module) -> bool:
    """Whether the weight of a linear layer is [I, O], as in GPT-2, instead of [O, I]."""
    return _OTHER_LINEAR.get(_transformers_name(layer), False)


def matrix_shape(layer: nn.Module) -> tuple[int, ...]:
    """[O, I] of a linear layer of either orientation; [O, I, ...] of a convolution."""
    if is_quantised(layer):
        return int(vars(layer)["out_features"]), int(vars(layer)["in_features"])
    shape = tuple(layer.get_parameter("weight").shape)
    return shape[::-1] if is_transposed(layer) else shape


def _method(kind: type[nn.Module], name: str) -> object:
    return getattr(kind, name, None)


def _transformers_name(layer: nn.Module) -> str:
    """Class name of a layer of transformers; "" for any other layer."""
    kind = type(layer)
    return kind.__name__ if kind.__module__.startswith("transformers.") else ""
