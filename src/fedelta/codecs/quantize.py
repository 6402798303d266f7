"""Codecs that write whole numbers on a scale of their own.

A tensor of two or more axes has a scale for each index of its first axis, its *rows*; any other is one row. With m the
largest magnitude of a row,

    q = round(127 x / m),    x' = q m / 127

so that an element is off by at most m / 254. A quarter of the bytes of float32, and four bytes for each row.
What is lost is kept and added to the next upload.

Source: Seide et al. 2014 (1-bit SGD, Interspeech) for the error feedback; symmetric rounding by row is common practice.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedelta.codecs.base import Packed
from fedelta.errors import PayloadError
from fedelta.params import is_finite
from fedelta.settings import Settings

_LARGEST = 127


class Int8(Settings):
    """Eight bits a number: the rows' scales in float32, then the numbers, row by row."""

    name: Literal["int8"] = "int8"
    feeds_back: ClassVar[bool] = True

    def pack(self, name: str, tensor: Tensor) -> Packed:
        """See `Codec.pack`."""
        if not tensor.numel():
            return bytes(4 * _num_rows(tuple(tensor.shape)))
        rows = tensor.detach().to("cpu", torch.float32).reshape(_num_rows(tuple(tensor.shape)), -1)
        if not is_finite(rows):
            raise PayloadError(f"`{name}`: a tensor holds values that are NaN or infinite.")
        scales = rows.abs().amax(1) / _LARGEST
        # Near the largest float32 a scale that was rounded up would be infinite again, times 127.
        scales = torch.where((scales * _LARGEST).isinf(), torch.nextafter(scales, torch.zeros(())), scales)
        # A row of zeros has scale zero; any divisor gives its zeros.
        quotients = rows / torch.where(scales > 0, scales, 1.0)[:, None]
        # The scale of a row near the least float32 has too few digits: a quotient may lie beyond what it stands for.
        numbers = quotients.round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
        return scales.numpy().tobytes() + numbers.numpy().tobytes()

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        """See `Codec.unpack`."""
        num_rows = _num_rows(shape)
        expected = 4 * num_rows + prod(shape)
        if len(data) != expected:
            raise PayloadError(f"`{name}`: {len(data)} bytes for a tensor {shape} in int8, expected {expected}.")
        if not prod(shape):
            return torch.zeros(shape)
        scales = torch.from_numpy(np.frombuffer(data[: 4 * num_rows], dtype="<f4").astype(np.float32))
        numbers = torch.from_numpy(np.frombuffer(data[4 * num_rows :], dtype=np.int8).astype(np.float32))
        return (numbers.view(num_rows, -1) * scales[:, None]).reshape(shape)


def _num_rows(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) > 1 else 1
