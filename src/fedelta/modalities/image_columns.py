"""Properties of a whole column of images: value range, stored shape, and warnings about odd files."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from fedelta.errors import DataError, listed
from fedelta.modalities.base import Column, ExampleError
from fedelta.modalities.pixels import Header, ImageShape, brightest_of_deep_colour, extremes
from fedelta.modalities.stores import Encoded, Stored, evenly_spaced, row_name, rows_of
from fedelta.modalities.value_range import ValueRange, check_colour, common_range

logger = logging.getLogger("fedelta")

# Images that are decoded at every fetch are checked by a sample only.
_NUM_SAMPLED = 16
_FLAT = 2  # of 255 gray levels, between the darkest and the brightest pixel
_Store = TypeVar("_Store", Stored, Encoded)


def find_value_range(column: Column) -> ValueRange:
    """The value range of a column's images of more than 8 bits; 0..255 if there are none.

    Raises:
        DataError: colour images of 16 bits per channel are almost empty in the upper 8 bits, all that Pillow reads.
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
            continue  # reported with its row when the image is read
    try:
        check_colour(brightest)
    except ExampleError as error:
        raise DataError(f"{column.origin} holds {error}") from error
    return common_range(pairs)


def kept_shape(headers: Collection[Header], image_size: int) -> tuple[ImageShape, bool]:
    """The shape to store images in, and whether it is their original one: shared by all, no larger than the model's."""
    channels = max((header.shape.channels for header in headers), default=1)
    sizes = {(header.shape.height, header.shape.width) for header in headers}
    if len(sizes) == 1 and max(size := next(iter(sizes))) <= image_size:
        return ImageShape(channels, *size), True
    return ImageShape(channels, image_size, image_size), False


def warn_of_frames(column: Column, headers: Iterable[Header]) -> None:
    """Warns if files hold more than one image."""
    if any(header.has_frames for header in headers):
        logger.warning("%s has files with more than one image; only the first of each is used.", column.origin)


def warn_of_flat_images(column: Column, store: _Store) -> _Store:
    """Returns `store`; warns of images whose pixels are nearly all equal, a sign of a wrong value range."""
    if isinstance(store, Stored):
        flat, num = _flat_rows(store.raw), len(store)
    else:
        sample = evenly_spaced(len(store), _NUM_SAMPLED)
        flat, num = _flat_samples(store, sample), len(sample)
    if len(flat):
        first = column.take(flat[:3])
        names = [row_name(int(column.numbers[row]), value) for row, value in zip(flat[:3].tolist(), first, strict=True)]
        logger.warning(
            "%s: in %d of %d images checked, pixels are nearly all equal (%s): check their range of values.",
            column.origin,
            len(flat),
            num,
            listed(names).replace("'", ""),
        )
    return store


def _flat_samples(store: Encoded, rows: Tensor) -> Tensor:
    flat = []
    for row in rows:
        with contextlib.suppress(DataError):  # a damaged image is reported when it is fetched
            if is_flat(store.raw(row[None])):
                flat.append(int(row))
    return torch.tensor(flat, dtype=torch.int64)


def is_flat(image: Tensor) -> bool:
    """Whether the pixels of an image, uint8 of any shape, are nearly all equal."""
    return bool(int(image.max()) - int(image.min()) <= _FLAT)


def _flat_rows(raw: Tensor) -> Tensor:
    """Indices of the rows of `raw` [N, ...] whose values are nearly all equal."""
    values = raw.flatten(1)
    return (values.amax(1).int() - values.amin(1).int() <= _FLAT).nonzero()[:, 0]
