"""What a codec is: how one tensor becomes bytes. Framing and checks are wire.py's, directions are channel.py's."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

Packed = bytes | memoryview


class Codec(Protocol):
    """A way to write a tensor. The same object serves simulation and deployment."""

    @property
    def name(self) -> str:
        """Name in configurations and in every payload's header."""

    @property
    def feeds_back(self) -> bool:
        """Whether what it leaves out of an upload is kept and added to the next one (error feedback)."""

    def pack(self, name: str, tensor: Tensor) -> Packed:
        """The bytes of a finite float32 tensor.

        Args:
            name: of the tensor in the specification.
            tensor: of any shape; not changed, but the result may be a view of its memory.

        Raises:
            PayloadError: the codec cannot hold its values.
        """

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        """A float32 tensor of `shape` from bytes of unknown origin.

        It may share their memory, so that a delta as large as the model is not copied: nothing may write into it.

        Raises:
            PayloadError: they cannot be a tensor of that shape.
        """
