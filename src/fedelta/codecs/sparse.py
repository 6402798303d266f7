"""Codecs that write k of the numbers of a tensor and leave out the others.

    x'_i = float16(x_i) for the chosen i (halves.py, with a common exponent), 0 for all others

`top-k` chooses the k largest magnitudes, and writes their places (gaps.py) before the values. `random-k` draws k places
without replacement; a seed of 4 bytes says which, so that no place travels. Neither scales the values up: what is left
out comes later, by error feedback.

    top-k:     places | exponent and values, in the order of the places
    random-k:  seed, 4 bytes, little-endian | exponent and values

Source: Stich et al. 2018 (Sparsified SGD with Memory, arXiv 1809.07599) for both, with error feedback.
"""

from __future__ import annotations

import math
from math import prod
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedelta.codecs import gaps, halves
from fedelta.codecs.base import Packed
from fedelta.errors import PayloadError
from fedelta.settings import Settings

# A share of a tensor's numbers, or how many.
Count = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]
_SEED_BYTES = 4


class TopK(Settings):
    """The largest numbers of each tensor, and their places.

    Args:
        k: how many: a share of the tensor's numbers (0.01), or a number (100); at least one, at most all.
    """

    name: Literal["top-k"] = "top-k"
    k: Count = 0.01  # usual in the literature: Stich et al. have 1 % and less
    feeds_back: ClassVar[bool] = True

    def pack(self, name: str, tensor: Tensor, seed: int) -> Packed:
        """See `Codec.pack`."""
        flat = _flat(name, tensor)
        if not flat.numel():
            return b""
        chosen = flat.abs().topk(_count(self.k, len(flat)), sorted=False).indices.sort().values
        return gaps.to_bytes(chosen.numpy()) + _values(flat[chosen])

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        """See `Codec.unpack`."""
        numel = prod(shape)
        count = _count(self.k, numel)
        middle = len(data) - (halves.num_bytes(count) if count else 0)
        if middle < 0 or (not count and len(data)):
            raise PayloadError(f"`{name}`: {len(data)} bytes for {count} values of a tensor {shape}, expected others.")
        if not count:
            return torch.zeros(shape)
        places = gaps.from_bytes(name, data[:middle], count, numel)
        return _restored(name, torch.from_numpy(places), data[middle:], shape)


class RandomK(Settings):
    """Numbers at random places of each tensor.

    Args:
        k: how many: a share of the tensor's numbers (0.01), or a number (100); at least one, at most all.
    """

    name: Literal["random-k"] = "random-k"
    k: Count = 0.01  # as for top-k
    feeds_back: ClassVar[bool] = True

    def pack(self, name: str, tensor: Tensor, seed: int) -> Packed:
        """See `Codec.pack`."""
        flat = _flat(name, tensor)
        if not flat.numel():
            return b""
        short = seed & 0xFFFFFFFF
        chosen = _drawn(short, _count(self.k, len(flat)), len(flat))
        return short.to_bytes(_SEED_BYTES, "little") + _values(flat[chosen])

    def unpack(self, name: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        """See `Codec.unpack`."""
        numel = prod(shape)
        count = _count(self.k, numel)
        expected = _SEED_BYTES + halves.num_bytes(count) if count else 0
        if len(data) != expected:
            raise PayloadError(f"`{name}`: {len(data)} bytes for a tensor {shape} in random-k, expected {expected}.")
        if not count:
            return torch.zeros(shape)
        places = _drawn(int.from_bytes(data[:_SEED_BYTES], "little"), count, numel)
        return _restored(name, places, data[_SEED_BYTES:], shape)


def _count(k: int | float, numel: int) -> int:
    """How many of `numel` numbers are sent.

    >>> _count(0.01, 1536), _count(0.01, 10), _count(100, 40), _count(0.5, 0)
    (15, 1, 40, 0)
    """
    return min(numel, k if isinstance(k, int) else max(1, math.floor(k * numel)))


def _flat(name: str, tensor: Tensor) -> Tensor:
    """The numbers of a tensor.

    Raises:
        PayloadError: one is NaN or infinite.
    """
    flat = tensor.detach().to("cpu", torch.float32).reshape(-1)
    if flat.numel() and not math.isfinite(float(flat.abs().amax())):
        raise PayloadError(f"`{name}`: a tensor holds values that are NaN or infinite.")
    return flat


def _values(chosen: Tensor) -> bytes:
    return halves.to_bytes(chosen, chosen.abs().amax())


def _restored(name: str, places: Tensor, data: memoryview, shape: tuple[int, ...]) -> Tensor:
    values = halves.from_bytes(name, data, signed=True)
    return torch.zeros(prod(shape)).index_copy_(0, places, values).view(shape)


def _drawn(seed: int, count: int, numel: int) -> Tensor:
    """`count` of the places below `numel`, ascending: those of the smallest of `numel` random numbers.

    Of Philox the bits as they are, which stay the same in every version of numpy.
    """
    numbers = np.random.Philox(key=seed).random_raw(numel)
    if count == numel:
        return torch.arange(numel)
    return torch.from_numpy(np.sort(np.argpartition(numbers, count - 1)[:count]))
