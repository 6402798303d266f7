"""A codec that writes the sign of each number, and for each group the mean magnitude.

    s = float16(mean |x|),    x' = s if x >= 0 else -s

The groups are those of `Integers` (quantize.py); by default a group is a row. A group of zeros has the scale zero.

    the scales (halves.py) | the signs, one bit each, 1 for negative, the first number in the lowest bit

Source: Karimireddy et al. 2019 (arXiv 1901.09847), Algorithm 1 with the compressor (||x||_1 / d) sign(x), which
converges only with error feedback.
"""

from __future__ import annotations

import math
from math import prod
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedelta.codecs import halves
from fedelta.codecs.base import Packed
from fedelta.codecs.quantize import Group
from fedelta.errors import PayloadError
from fedelta.settings import Settings


class Sign(Settings):
    """One bit a number, and scales.

    Args:
        group: how many numbers share a scale, one after the other; "row": those of a row.
    """

    name: Literal["sign"] = "sign"
    group: Group = "row"  # the paper has one scale a tensor
    feeds_back: ClassVar[bool] = True

    def pack(self, name: str, tensor: Tensor, seed: int) -> Packed:
        """See `Codec.pack`."""
        flat = tensor.detach().to("cpu", torch.float32).reshape(-1)
        if not flat.numel():
            return b""
        num, size = _groups(tuple(tensor.shape), self.group)
        padded = torch.cat([flat, flat.new_zeros(num * size - len(flat))]).view(num, size)
        # In float64: the sum of a group of the largest numbers is beyond float32.
        counts = torch.full((num,), size).clamp_(max=len(flat) - size * torch.arange(num))
        means = padded.abs().sum(1, dtype=torch.float64) / counts
        largest = means.amax()
        if not math.isfinite(float(largest)):
            raise PayloadError(f"`{name}`: a tensor holds values that are NaN or infinite.")
        signs = np.packbits((flat < 0).numpy(), bitorder="little")
        return halves.to_bytes(means.float(), largest) + signs.tobytes()

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        """See `Codec.unpack`."""
        numel, (num, size) = prod(shape), _groups(shape, self.group)
        middle = halves.num_bytes(num)
        expected = middle + (numel + 7) // 8 if numel else 0
        if len(data) != expected:
            raise PayloadError(f"`{name}`: {len(data)} bytes for a tensor {shape} in sign, expected {expected}.")
        if not numel:
            return torch.zeros(shape)
        scales = halves.from_bytes(name, data[:middle])
        if data[-1] >> (numel - 1) % 8 + 1:
            raise PayloadError(f"`{name}`: bits are set behind the last of {numel} signs.")
        bits = np.unpackbits(np.frombuffer(data[middle:], dtype=np.uint8), count=numel, bitorder="little")
        signs = torch.ones(num * size)
        signs[:numel] -= 2 * torch.from_numpy(bits)
        return (signs.view(num, size) * scales[:, None]).view(-1)[:numel].reshape(shape)


def _groups(shape: tuple[int, ...], group: Group) -> tuple[int, int]:
    """How many groups a tensor has, and how many numbers the largest has."""
    numel = prod(shape)
    if group == "row":
        num = shape[0] if len(shape) > 1 else 1
        return num, numel // max(1, num)
    return -(-numel // group), min(group, numel)
