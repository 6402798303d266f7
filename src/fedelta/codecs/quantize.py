"""Codecs that write each number as a small integer times a scale.

A tensor with two axes or more has one scale per *row*, an index of its first axis; any other tensor is one row. If m is
the largest magnitude in a row, an element x is sent as q and received as x':

    q = round(127 x / m),    x' = q m / 127

The error is at most m / 254. A payload has a quarter of the bytes of float32, plus four bytes per row. The client keeps
the error and adds it to its next upload.

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

_MAX_INT = 127  # and not -128: the range is symmetric


class Int8(Settings):
    """Eight bits per number: first the scales of all rows in float32, then the numbers, row by row."""

    name: Literal["int8"] = "int8"
    feeds_back: ClassVar[bool] = True

    def pack(self, name: str, tensor: Tensor) -> Packed:
        """See `Codec.pack`."""
        if not tensor.numel():
            return bytes(4 * _num_rows(tuple(tensor.shape)))
        rows = tensor.detach().to("cpu", torch.float32).reshape(_num_rows(tuple(tensor.shape)), -1)
        if not is_finite(rows):
            raise PayloadError(f"`{name}`: a tensor holds values that are NaN or infinite.")
        scales = rows.abs().amax(1) / _MAX_INT
        # Near the largest float32, a scale that was rounded up gives infinity when it is multiplied by 127.
        scales = torch.where((scales * _MAX_INT).isinf(), torch.nextafter(scales, torch.zeros(())), scales)
        # A row of zeros has scale zero and must not be divided by it.
        quotients = rows / torch.where(scales > 0, scales, 1.0)[:, None]
        # Near the smallest float32 a scale has so few bits that a quotient may exceed 127.
        numbers = quotients.round().clamp(-_MAX_INT, _MAX_INT).to(torch.int8)
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
