"""Codecs that write every number in one floating-point format."""

from __future__ import annotations

import warnings
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedelta.codecs.base import Packed
from fedelta.errors import PayloadError
from fedelta.params import is_finite
from fedelta.settings import Settings

_HINT = 'use `codec.name = "bfloat16"`, which has the range of float32.'


class Cast(Settings):
    """Little-endian numbers in row-major order.

    Args:
        name: the format: `float32` is exact; `float16` keeps 11 significant bits up to 65,504; `bfloat16` keeps
            8 with the range of float32.
    """

    name: Literal["float32", "float16", "bfloat16"] = "float32"
    # No error feedback, as in the papers: 11 or 8 significant bits of a delta are precise enough.
    feeds_back: ClassVar[bool] = False

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of the format."""
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.name]

    def pack(self, name: str, tensor: Tensor, seed: int = 0) -> Packed:
        """See `Codec.pack`."""
        numbers = tensor.detach().to("cpu", self.dtype).contiguous()
        if not is_finite(numbers):
            largest = float(tensor.abs().max())
            raise PayloadError(
                f"`{name}`: a tensor holds values that are not finite in {self.name}; its largest magnitude is "
                f"{largest:.3g}.",
                hint=_HINT if self.name == "float16" and is_finite(tensor.to(torch.bfloat16)) else None,
            )
        # As bytes, because numpy has no bfloat16.
        return numbers.reshape(-1).view(torch.uint8).numpy().data

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        """See `Codec.unpack`."""
        expected = prod(shape) * self.dtype.itemsize
        if len(data) != expected:
            raise PayloadError(f"`{name}`: {len(data)} bytes for a tensor {shape} in {self.name}, expected {expected}.")
        if not expected:
            return torch.zeros(shape)
        with warnings.catch_warnings():
            # torch warns that the bytes are read-only; `Codec.unpack` promises nothing else.
            warnings.simplefilter("ignore", UserWarning)
            return torch.frombuffer(data, dtype=self.dtype).reshape(shape).float()
