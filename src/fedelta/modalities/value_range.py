"""Maps images of more than 8 bits to 8: which value becomes black and which becomes white.

A file or array of 16-bit, 32-bit or floating-point values does not say which value is white: a 12-bit camera that
writes 16-bit files stays below 4,096, a CT scan begins at -1,024. So the range of the training data is used for every
image of a run and of its adapter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedelta.modalities.base import ExampleError

# Values that fill less than an eighth of a usual range would keep fewer than 5 of 8 bits; it is probably not theirs.
_LEAST_SHARE = 1 / 8
_DARK = 255 * _LEAST_SHARE


@dataclass(frozen=True)
class ValueRange:
    """A range of values.

    Args:
        low: becomes black.
        high: becomes white.
    """

    low: float = 0.0
    high: float = 255.0

    def eight_bit(self, numbers: NDArray[Any]) -> NDArray[np.uint8]:
        """`numbers` (Any: integers or floats) as 0..255, in the same shape; values slightly outside are clipped.

        Raises:
            ExampleError: a value lies further outside the range than the range is wide.

        >>> ValueRange(0, 1000).eight_bit(np.array([-3, 0, 500, 1000]))
        array([  0,   0, 128, 255], dtype=uint8)
        """
        width = self.high - self.low
        low, high = float(numbers.min()), float(numbers.max())
        if width > 0 and (low < self.low - width or high > self.high + width):
            raise ExampleError(
                f"values {low:g} to {high:g}, far outside the training data's {self.low:g} to {self.high:g}; "
                "save it in the unit of the training data, or with 8 bits"
            )
        scaled = (numbers.astype(np.float64) - self.low) * (255 / (width or 1.0))
        return np.floor(scaled.clip(0, 255) + 0.5).astype(np.uint8)


EIGHT_BIT = ValueRange()


def common_range(extremes: Iterable[tuple[float, float]]) -> ValueRange:
    """The range of a data set: 0..1 or 0..255 if its values fill at least an eighth of that, else their extremes.

    Args:
        extremes: smallest and largest value of each image of more than 8 bits; if empty, the range is 0..255.

    >>> common_range([(0, 4000), (7, 4095)]), common_range([(0.1, 0.9)]), common_range([])
    (ValueRange(low=0, high=4095), ValueRange(low=0.0, high=1.0), ValueRange(low=0.0, high=255.0))
    """
    pairs = list(extremes)
    if not pairs:
        return EIGHT_BIT
    low, high = min(low for low, _ in pairs), max(high for _, high in pairs)
    for usual in (ValueRange(0.0, 1.0), EIGHT_BIT):
        if low >= 0 and usual.high * _LEAST_SHARE <= high <= usual.high:
            return usual
    return ValueRange(low, high)


def check_colour(brightest: Iterable[int]) -> None:
    """Refuses colour images of 16 bits per channel if their upper 8 bits, all that Pillow reads, are almost empty.

    Args:
        brightest: the largest value of each such image in the upper 8 bits, 0..255.

    Raises:
        ExampleError: all images are nearly black.
    """
    largest = max(brightest, default=255)
    if largest < _DARK:
        raise ExampleError(
            f"colour images of 16 bits per channel with values below {(largest + 1) * 256:,} of 65,536, but Pillow "
            "reads only the upper 8 bits; save them with 8 bits per channel, or scale them to all 16 bits"
        )
