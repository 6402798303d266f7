"""The protocol of a codec, which writes one tensor as bytes. wire.py makes payloads, channel.py pairs two codecs."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

Packed = bytes | memoryview


class Codec(Protocol):
    """Writes a tensor as bytes and reads it back."""

    @property
    def name(self) -> str:
        """Name in configurations and in every payload's header."""

    @property
    def feeds_back(self) -> bool:
        """Whether it leaves so much out that the sender has to add that to what it sends next (error feedback)."""

    def pack(self, name: str, tensor: Tensor, seed: int) -> Packed:
        """The bytes of a finite float32 tensor.

        Args:
            name: name of the tensor in the specification.
            tensor: a tensor of any shape. It is not changed, but the result may be a view of its memory.
            seed: names the stream of this tensor, sender and round, for a codec that draws; 0 or more, below 2^63.

        Raises:
            PayloadError: a value is not finite, or out of the codec's range.
        """

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        """The float32 tensor of `shape` in `data`, which comes from an untrusted sender.

        The tensor may share the memory of `data`, so that a delta as large as the model is not copied; it must not be
        written to.

        Raises:
            PayloadError: `data` cannot be a tensor of this shape.
        """


def most_bytes(numel: int) -> int:
    """Upper limit for the bytes of a tensor of `numel` scalars in any codec.

    A scalar takes 4 bytes as float32, and as much again for what a codec adds, such as the places of sparse values.
    """
    return 8 * numel + 64
