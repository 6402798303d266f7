"""What a codec is: how one tensor of a delta becomes bytes. Framing and checks are wire.py's."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """A way to write a tensor. The same object serves simulation and deployment."""

    @property
    def name(self) -> str:
        """Name in configurations and in every payload's header."""

    def pack(self, tensor: Tensor) -> bytes:
        """The bytes of a finite float32 tensor.

        Raises:
            PayloadError: the codec cannot hold its values.
        """

    def unpack(self, data: bytes, shape: tuple[int, ...]) -> Tensor:
        """A float32 tensor of `shape` from bytes of unknown origin.

        Raises:
            PayloadError: they cannot be a tensor of that shape.
        """
