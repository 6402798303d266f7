"""Runs a block up to its attention, and then anew with an attention that has been told what to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn


class ReachedError(Exception):
    """Stops a block at its attention, and carries what the attention is called with."""

    def __init__(self, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        super().__init__("the attention of the last block reached")
        self.arguments = (args, kwargs)


class Pausing(nn.Module):
    """An attention that stops its block when it is called, unless it has been told what to read.

    Attributes:
        arguments: positional and keyword arguments with which `attention` is called, whatever the call has.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.arguments: tuple[Sequence[object], Mapping[str, object]] | None = None

    def forward(self, *args: object, **kwargs: object) -> object:
        """The attention's output, for `arguments`."""
        if self.arguments is None:
            raise ReachedError(args, kwargs)
        positional, by_name = self.arguments
        return self.attention(*positional, **by_name)
