"""Which layers compute what their PyTorch class says. Only these may be edited, replaced or folded into.

A class that derives from PyTorch's may do something else with the same weights: standardise a kernel first, end in an
activation, dequantise. So may a layer with hooks or parametrizations, such as weight norm and spectral norm.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

# Methods that say together what a layer computes.
_METHODS = ("forward", "_conv_forward", "__call__")


def oddity(layer: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why `layer`, an instance of `kind`, may not compute what a plain `kind` does with its tensors; None if it does.

    Completes the sentence "it ...". Subclasses that change nothing of the computation are plain.
    """
    own = [name for name in _METHODS if _method(type(layer), name) is not _method(kind, name) or name in vars(layer)]
    if own:
        return f"is a {type(layer).__name__} with a `{own[0]}` of its own"
    if parametrize.is_parametrized(layer):
        return "is parametrized, as by weight norm or spectral norm"
    if layer._forward_pre_hooks or layer._forward_hooks:
        return "has forward hooks, as the older weight norm and spectral norm are"
    if any(name not in layer._parameters for name in ("weight", "bias")):
        return f"is a {type(layer).__name__} whose weight or bias is no parameter"
    return None


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `layer` computes what a plain `kind` does."""
    return isinstance(layer, kind) and oddity(layer, kind) is None


def _method(kind: type[nn.Module], name: str) -> object:
    return getattr(kind, name, None)
