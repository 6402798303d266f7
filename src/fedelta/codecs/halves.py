"""Numbers in float16 with a common exponent, for the scales and values of other codecs.

float16 alone ends at 65,504 and has few bits below 6e-5, while deltas may be of any magnitude. So all numbers x of one
piece share a factor that puts the largest between 2^14 and 2^15:

    x' = float16(x 2^-e) 2^e

They keep 11 significant bits, those below 2^-29 of the largest fewer, and those below 2^-40 of it become zero. So do
pieces whose largest number is below 2^-121, which no model notices.

    e, 1 byte, signed | the numbers, 2 bytes each, little-endian
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from fedelta.errors import PayloadError

LEAST_EXPONENT = -96  # so that 1 / x' is a number of float32
_INFINITY = 0x7C00  # of float16, as an integer; all finite numbers >= 0 are below, in their order


def num_bytes(count: int) -> int:
    """The length of `count` numbers with their exponent."""
    return 1 + 2 * count


def rounded(numbers: Tensor, largest: float, multiple: float = 1.0) -> tuple[Tensor, int]:
    """`numbers` as float16, and their exponent e; `multiple` times a number stays in the range of float32.

    Args:
        numbers: float32, finite.
        largest: of their magnitudes.
        multiple: that the reader computes with.
    """
    exponent = max(LEAST_EXPONENT, math.frexp(largest)[1] - 15) if largest else LEAST_EXPONENT
    halves = (numbers * math.ldexp(1.0, -exponent)).half()
    if largest * multiple > 1e38:  # near the largest float32 a number that was rounded up may be too large
        limit = torch.finfo(torch.float32).max / multiple
        beyond = halves.double().abs() * math.ldexp(1.0, exponent) > limit
        halves.view(torch.int16)[beyond] -= 1  # the next number towards zero
    return halves, exponent


def to_bytes(halves: Tensor, exponent: int) -> bytes:
    """The bytes of numbers and their exponent."""
    return exponent.to_bytes(1, "little", signed=True) + halves.contiguous().view(torch.uint8).numpy().tobytes()


def put(halves: Tensor, exponent: int, target: Tensor) -> Tensor:
    """Writes the bytes of numbers and their exponent to the start of `target`, uint8; returns what is behind them."""
    end = num_bytes(len(halves))
    target[0] = exponent % 256
    target[1:end] = halves.contiguous().view(torch.uint8)
    return target[end:]


def restored(halves: Tensor, exponent: int) -> Tensor:
    """The numbers as float32."""
    return halves.float().mul_(math.ldexp(1.0, exponent))


def from_bytes(name: str, data: memoryview, multiple: float = 1.0, *, signed: bool = False) -> Tensor:
    """The float32 numbers in `data`, whose length the caller has checked; at least one.

    Args:
        name: of the tensor, for the message.
        data: from an untrusted sender.
        multiple: that the caller computes with: `multiple` times a number is finite.
        signed: whether numbers may be negative.

    Raises:
        PayloadError: a number is NaN, infinite, too large, or negative without `signed`.
    """
    exponent = int.from_bytes(data[:1], "little", signed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the bytes are read-only; nothing writes to them
        halves = torch.frombuffer(data, dtype=torch.float16, offset=1)
    bits = halves.view(torch.int16)
    low, high = (int(limit) for limit in ((bits & 0x7FFF) if signed else bits).aminmax())
    if low < 0 or high >= _INFINITY:
        kind = "NaN or infinite" if high >= _INFINITY else "negative"
        raise PayloadError(f"`{name}`: a {'value' if signed else 'scale'} is {kind}, expected a finite number.")
    numbers = restored(halves, exponent)
    if not float(numbers.abs().amax()) * multiple <= torch.finfo(torch.float32).max:
        raise PayloadError(f"`{name}`: a {'value' if signed else 'scale'} is too large for float32.")
    return numbers
