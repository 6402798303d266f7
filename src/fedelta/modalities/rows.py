"""Columns of images: what is found in all rows of one together."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from fedelta.errors import DataError, listed
from fedelta.modalities.base import Column, ExampleError
from fedelta.modalities.gray_range import Levels, check_colour, common_levels
from fedelta.modalities.pixels import Header, ImageShape, brightest_of_deep_colour, extremes
from fedelta.modalities.stores import Encoded, Stored, described, rows_of, spread

logger = logging.getLogger("fedelta")

# Of images that are decoded at every fetch only some are looked at.
_NUM_SAMPLED = 16
_FLAT = 2  # gray levels, of 255, between the darkest and the brightest pixel
_Store = TypeVar("_Store", Stored, Encoded)


def find_levels(column: Column) -> Levels:
    """The range of the images of more than 8 bits in a column; 0..255 where there are none.

    Raises:
        DataError: colour of 16 bits of which only the upper 8 can be read, and say nearly nothing.
    """
    pairs: list[tuple[float, float]] = []
    brightest: list[int] = []
    for _, value in rows_of(column):
        try:
            if (pair := extremes(value)) is not None:
                pairs.append(pair)
            elif (level := brightest_of_deep_colour(value)) is not None:
                brightest.append(level)
        except ExampleError:
            continue  # told with its row when it is read
    try:
        check_colour(brightest)
    except ExampleError as error:
        raise DataError(f"{column.origin} holds {error}") from error
    return common_levels(pairs)


def kept_shape(headers: Collection[Header], image_size: int) -> tuple[ImageShape, bool]:
    """The shape in which to keep images, and whether it is their own: if that is one, no larger than the model's."""
    channels = max((header.shape.channels for header in headers), default=1)
    sizes = {(header.shape.height, header.shape.width) for header in headers}
    if len(sizes) == 1 and max(size := next(iter(sizes))) <= image_size:
        return ImageShape(channels, *size), True
    return ImageShape(channels, image_size, image_size), False


def say_frames(column: Column, headers: Iterable[Header]) -> None:
    """Warns where files hold more than one image."""
    if any(header.has_frames for header in headers):
        logger.warning("%s has files of more than one image; the first of each is taken.", column.origin)


def say_flat(column: Column, store: _Store) -> _Store:
    """`store`; warns where an image has nearly one value, which is what a wrong range makes of it."""
    if isinstance(store, Stored):
        flat, num = _flat_rows(store.raw), len(store)
    else:
        sample = spread(len(store), _NUM_SAMPLED)
        flat, num = _flat_samples(store, sample), len(sample)
    if len(flat):
        first = column.take(flat[:3])
        names = [
            described(int(column.numbers[row]), value) for row, value in zip(flat[:3].tolist(), first, strict=True)
        ]
        logger.warning(
            "%s: %d of %d images that were looked at are nearly of one value (%s): is their range right?",
            column.origin,
            len(flat),
            num,
            listed(names).replace("'", ""),
        )
    return store


def _flat_samples(store: Encoded, rows: Tensor) -> Tensor:
    flat = []
    for row in rows:
        with contextlib.suppress(DataError):  # a damaged image is told when it is fetched
            if is_flat(store.raw(row[None])):
                flat.append(int(row))
    return torch.tensor(flat, dtype=torch.int64)


def is_flat(image: Tensor) -> bool:
    """Whether an image, uint8 of any shape, is nearly of one value."""
    return bool(int(image.max()) - int(image.min()) <= _FLAT)


def _flat_rows(raw: Tensor) -> Tensor:
    """Places of the rows of `raw` [N, ...] that are nearly of one value."""
    values = raw.flatten(1)
    return (values.amax(1).int() - values.amin(1).int() <= _FLAT).nonzero()[:, 0]
