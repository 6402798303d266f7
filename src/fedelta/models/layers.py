"""Linear layers, whichever way round their weight lies."""

from __future__ import annotations

from torch import nn

from fedelta.models.known import is_plain, oddity

# Linear layers under other names: `x W^T + b` by other words, or with the weight the other way round.
_OTHER_LINEAR = {"FalconLinear": False, "Conv1D": True}


def is_linear(layer: nn.Module) -> bool:
    """Whether `layer` computes `x W^T + b`, or `x W + b` (transformers' `Conv1D`)."""
    if _transformers_name(layer) in _OTHER_LINEAR:
        return oddity(layer, type(layer)) is None
    return is_plain(layer, nn.Linear)


def is_transposed(layer: nn.Module) -> bool:
    """Whether the weight of a linear layer is [I, O], as in GPT-2, and not [O, I]."""
    return _OTHER_LINEAR.get(_transformers_name(layer), False)


def matrix_shape(layer: nn.Module) -> tuple[int, ...]:
    """[O, I] of a linear layer, whichever way round its weight lies; [O, I, ...] of a convolution."""
    shape = tuple(layer.get_parameter("weight").shape)
    return shape[::-1] if is_transposed(layer) else shape


def _transformers_name(layer: nn.Module) -> str:
    """Name of a class of transformers, "" for any other."""
    kind = type(layer)
    return kind.__name__ if kind.__module__.startswith("transformers.") else ""
