"""Ascending places as bits: the gaps between them in a Rice code.

The gap d_i = p_i - p_(i-1) - 1 (p_(-1) = -1) is the number of places that are left out before place p_i. With the
parameter r, from 0, it is written as its upper part d_i >> r in unary and its lower r bits as they are. In the order

    r, 1 byte | the lower bits of all gaps, r each | the upper parts, each as so many zeros and a one

each of the last two filled up to whole bytes, the first bit in the lowest place. Places that descend or repeat cannot
be written. r is the best one. For k places out of n, drawn at random, that is within 3 % of the entropy; r = 0 is the
bitmap of the places, and a large r gives places of a fixed width. For 1 % of the places it takes 8.1 bits for each,
where gaps in bytes (LEB128) take 10.3, places of a fixed width 11 to 20, and a bitmap 100 (docs/codecs.md).

Source: Rice and Plaunt 1971; Elias 1974 for the upper parts in one piece.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedelta.errors import PayloadError

Places = NDArray[np.int64]


def to_bytes(places: Places) -> bytes:
    """The bytes of ascending places, at least one."""
    gaps = np.diff(places, prepend=-1) - 1
    guess = max(0, math.floor(math.log2(max(1.0, 0.7 * float(gaps.mean())))))
    low = min((guess - 1, guess, guess + 1), key=lambda bits: _num_bits(gaps, bits) if bits >= 0 else math.inf)
    lower = (gaps[:, None] >> np.arange(low) & 1).astype(np.uint8)
    ends = np.cumsum((gaps >> low) + 1) - 1
    upper = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
    upper[ends] = 1
    return bytes([low]) + _packed(lower) + _packed(upper)


def from_bytes(name: str, data: memoryview, count: int, numel: int) -> Places:
    """`count` ascending places below `numel`.

    Args:
        name: of the tensor, for the message.
        data: from an untrusted sender.
        count: at least 1.
        numel: of the tensor.

    Raises:
        PayloadError: there are more or fewer places, or one is too large.
    """
    low = data[0] if data else 255
    middle = 1 + (count * low + 7) // 8
    # The upper parts hold a one for each place, and zeros for at most numel >> low.
    most = middle + (count + (numel >> low) + 7) // 8
    if low > numel.bit_length() or not middle < len(data) <= most:
        raise PayloadError(f"`{name}`: {len(data)} bytes for the places of {count} of {numel} values, expected others.")
    lower = np.unpackbits(np.frombuffer(data[1:middle], dtype=np.uint8), count=count * low, bitorder="little")
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(data[middle:], dtype=np.uint8), bitorder="little"))
    if len(ends) != count or ends[-1] // 8 != len(data) - middle - 1:
        raise PayloadError(f"`{name}`: {len(ends)} places of values, expected {count}.")
    upper = np.diff(ends, prepend=-1) - 1
    gaps = upper << low
    for bit in range(low):
        gaps |= lower[bit::low].astype(np.int64) << bit
    places: Places = np.cumsum(gaps + 1) - 1
    # No sum overflows: the upper parts add up to `numel` and a few at most, and each lower part is below 2 `numel`.
    if places[-1] >= numel:
        raise PayloadError(f"`{name}`: a value has the place {places[-1]}, expected one below {numel}.")
    return places


def _num_bits(gaps: Places, low: int) -> int:
    return int((gaps >> low).sum()) + len(gaps) * (low + 1)


def _packed(bits: NDArray[np.uint8]) -> bytes:
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()
