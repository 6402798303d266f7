"""Numbers in float16 with a common exponent, for the scales and values of other codecs.

float16 alone ends at 65,504 and has few bits below 6e-5, while deltas may be of any magnitude. So all numbers x of one
piece share a factor that puts the largest between 2^14 and 2^15:

    x' = float16(x 2^-e) 2^e

They keep 11 significant bits, those below 2^-29 of the largest fewer, and those below 2^-40 of it become zero. So do
pieces whose largest number is below 2^-121, which no model notices.

    e, 1 byte, signed | the numbers, 2 bytes each, little-endian
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedelta.errors import PayloadError

LEAST_EXPONENT = -96  # so that 1 / x' is a number of float32
_INFINITY = 0x7C00  # of float16, as an integer; all finite numbers >= 0 are below, in their order

Exponents = NDArray[np.int8]


def num_bytes(count: int) -> int:
    """The length of `count` numbers with their exponent."""
    return 1 + 2 * count


def rounded(numbers: Tensor, largest: Tensor, multiple: float = 1.0) -> tuple[Tensor, Exponents]:
    """`numbers` as float16, and the exponent e of each row; `multiple` times a number stays in the range of float32.

    Args:
        numbers: float32 [T, N], finite; a row is a piece.
        largest: [T], of the magnitudes in each row.
        multiple: that the reader computes with.
    """
    sizes = largest.double().numpy()
    exponents: Exponents = np.maximum(np.frexp(sizes)[1] - 15, LEAST_EXPONENT).astype(np.int8)
    exponents[sizes == 0] = LEAST_EXPONENT
    halves = (numbers * _powers(-exponents)).half()
    if sizes.max() * multiple > 1e38:  # near the largest float32 a number that was rounded up may be too large
        limit = torch.finfo(torch.float32).max / multiple
        beyond = halves.double().abs() * _powers(exponents).double() > limit
        halves.view(torch.int16)[beyond] -= 1  # the next number towards zero
    return halves, exponents


def put(halves: Tensor, exponents: Exponents, target: NDArray[np.uint8]) -> None:
    """Writes the bytes of each row of numbers and its exponent to a row of `target` [T, 1 + 2 N]."""
    target[:, 0] = exponents.view(np.uint8)
    target[:, 1:] = halves.numpy().view(np.uint8)


def to_bytes(numbers: Tensor, largest: Tensor) -> bytes:
    """The bytes of numbers [N] of one piece, and of their exponent; `largest` of their magnitudes, no axis."""
    halves, exponents = rounded(numbers[None], largest[None])
    return exponents.tobytes() + halves.contiguous().view(torch.uint8).numpy().tobytes()


def restored(halves: Tensor, exponents: Exponents) -> Tensor:
    """The numbers as float32 [T, N]."""
    return halves.float().mul_(_powers(exponents))


def from_bytes(name: str, data: memoryview, *, signed: bool = False) -> Tensor:
    """The float32 numbers [N] in `data`, whose length the caller has checked; at least one. See `from_rows`."""
    return from_rows([name], np.frombuffer(data, dtype=np.uint8)[None], signed=signed)[0]


def from_rows(names: Sequence[str], rows: NDArray[np.uint8], multiple: float = 1.0, *, signed: bool = False) -> Tensor:
    """The float32 numbers [T, N] in `rows` [T, 1 + 2 N]; N is at least 1.

    Args:
        names: of the tensor of each row, for the message.
        rows: from an untrusted sender.
        multiple: that the caller computes with: `multiple` times a number is finite.
        signed: whether numbers may be negative.

    Raises:
        PayloadError: a number is NaN, infinite, too large, or negative without `signed`.
    """
    kind = "value" if signed else "scale"
    halves = torch.from_numpy(rows[:, 1:].copy()).view(torch.float16)
    bits = halves.view(torch.int16)
    bits = bits & 0x7FFF if signed else bits
    low, high = bits.amin(1), bits.amax(1)
    if (wrong := (low < 0) | (high >= _INFINITY)).any():
        place = int(wrong.nonzero()[0])
        problem = "NaN or infinite" if high[place] >= _INFINITY else "negative"
        raise PayloadError(f"`{names[place]}`: a {kind} is {problem}, expected a finite number.")
    numbers = restored(halves, rows[:, 0].view(np.int8))
    sizes = numbers.abs().amax(1).double() * multiple
    if (beyond := ~(sizes <= torch.finfo(torch.float32).max)).any():
        raise PayloadError(f"`{names[int(beyond.nonzero()[0])]}`: a {kind} is too large for float32.")
    return numbers


def _powers(exponents: Exponents) -> Tensor:
    """2^e as float32 [T, 1]."""
    return torch.from_numpy(np.ldexp(np.float32(1), exponents))[:, None]
