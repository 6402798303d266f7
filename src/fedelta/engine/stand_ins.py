"""Puts other modules in the place of a model's own for one call, so that the model's own code does the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from fedelta.tuning.base import replace


@contextmanager
def replaced(module: nn.Module, stand_ins: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replaces the submodules at these paths by `stand_ins`, in their order, until the context ends."""
    originals = {path: module.get_submodule(path) for path in stand_ins}
    try:
        for path, stand_in in stand_ins.items():
            replace(module, path, stand_in)
        yield
    finally:
        # In reverse: the path of a module inside another one leads through the original of that other one.
        for path, original in reversed(originals.items()):
            replace(module, path, original)
