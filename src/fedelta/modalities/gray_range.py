"""What becomes black and what becomes white in images of more than 8 bits.

A file or an array of 16 or 32 bits, or of floating-point numbers, does not say which of its values is white: a camera
of 12 bits in a file of 16 stays below 4,096, a tomograph begins at -1,024. So the range of the training data counts,
for every image of a run and of its adapter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedelta.modalities.base import ExampleError

# Below an eighth of a usual range, 8 bits would be left with 5: too few to take it for granted.
_LEAST_SHARE = 1 / 8
_DARK = 255 * _LEAST_SHARE


@dataclass(frozen=True)
class Levels:
    """A range of values.

    Args:
        low: becomes black.
        high: becomes white.
    """

    low: float = 0.0
    high: float = 255.0

    def eight_bit(self, numbers: NDArray[Any]) -> NDArray[np.uint8]:
        """`numbers` (Any: integers or floats) as 0..255, of the same shape; what lies a little outside is cut.

        Raises:
            ExampleError: they lie further outside than the range is wide.

        >>> Levels(0, 1000).eight_bit(np.array([-3, 0, 500, 1000]))
        array([  0,   0, 128, 255], dtype=uint8)
        """
        width = self.high - self.low
        low, high = float(numbers.min()), float(numbers.max())
        if width > 0 and (low < self.low - width or high > self.high + width):
            raise ExampleError(
                f"values {low:g} to {high:g}, far outside of the training data's {self.low:g} to {self.high:g}: "
                "save it in their unit, or with 8 bits"
            )
        scaled = (numbers.astype(np.float64) - self.low) * (255 / (width or 1.0))
        return np.floor(scaled.clip(0, 255) + 0.5).astype(np.uint8)


EIGHT_BIT = Levels()


def common_levels(extremes: Iterable[tuple[float, float]]) -> Levels:
    """The range for a data set: a usual one, 0..255 or 0..1, where its values fill an eighth of it, else their own.

    Args:
        extremes: smallest and largest value of each image of more than 8 bits; without any, 0..255.

    >>> common_levels([(0, 4000), (7, 4095)]), common_levels([(0.1, 0.9)]), common_levels([])
    (Levels(low=0, high=4095), Levels(low=0.0, high=1.0), Levels(low=0.0, high=255.0))
    """
    pairs = list(extremes)
    if not pairs:
        return EIGHT_BIT
    low, high = min(low for low, _ in pairs), max(high for _, high in pairs)
    for usual in (Levels(0.0, 1.0), EIGHT_BIT):
        if low >= 0 and usual.high * _LEAST_SHARE <= high <= usual.high:
            return usual
    return Levels(low, high)


def check_colour(brightest: Iterable[int]) -> None:
    """Refuses colour of 16 bits of which Pillow's 8, the upper ones, say nearly nothing.

    Args:
        brightest: the largest value of each such image, 0..255 of the upper 8 bits.

    Raises:
        ExampleError: all are dark.
    """
    largest = max(brightest, default=255)
    if largest < _DARK:
        raise ExampleError(
            f"colour images of 16 bits a channel with values below {(largest + 1) * 256:,} of 65,536, of which "
            "Pillow reads the upper 8 bits only; save them with 8 bits a channel, or with the whole range of 16"
        )
