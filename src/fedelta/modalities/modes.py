"""Converts images of all of Pillow's modes to 8-bit gray or RGB."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from fedelta.modalities.base import ExampleError
from fedelta.modalities.value_range import ValueRange

if TYPE_CHECKING:
    from PIL.Image import Image

# Modes of one channel with more than 8 bits: integers, and floating-point numbers.
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
GRAY_MODES = DEEP_MODES | {"1", "L"}

# Modes whose colours are premultiplied by opacity, and the modes that undo it.
_MULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
_BITS_PER_SAMPLE = 258  # a tag of TIFF


def eight_bit(image: Image, mode: str, value_range: ValueRange, *, on_white: bool) -> Image:
    """A copy of `image` in `mode`, "L" or "RGB".

    Args:
        image: decoded, in any mode.
        mode: of the result.
        value_range: values that become black and white in images of more than 8 bits.
        on_white: put transparent pixels on white, as image processors of transformers with `do_convert_rgb` do;
            otherwise transparency is dropped.

    Raises:
        ExampleError: its values are not finite, or far outside `value_range`.
    """
    from PIL import Image

    if image.mode == mode and (not on_white or "transparency" not in image.info):
        return image.copy()
    if image.mode in DEEP_MODES:
        numbers = np.asarray(image)
        if not np.isfinite(numbers).all():
            raise ExampleError("an image with values that are NaN or infinite")
        return Image.fromarray(value_range.eight_bit(numbers)).convert(mode)
    if image.mode == "LAB":
        return _from_lab(image).convert(mode)
    if image.mode in _MULTIPLIED:
        image = image.convert(_MULTIPLIED[image.mode])
    with warnings.catch_warnings():
        # Pillow prefers RGBA for palettes with transparency.
        warnings.simplefilter("ignore", UserWarning)
        if on_white and ("A" in image.getbands() or image.info.get("transparency") is not None):
            background = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(background, image.convert("RGBA"))
        return image.convert(mode)


def is_deep_colour(image: Image, png_depth: int | None) -> bool:
    """Whether a colour image has more than 8 bits per channel, of which Pillow reads only the upper 8.

    Args:
        image: opened.
        png_depth: bits per channel of a PNG file; None for other formats.
    """
    if png_depth is not None:
        return png_depth > 8
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return image.format == "TIFF" and max(bits, default=8) > 8


def _from_lab(image: Image) -> Image:
    """A CIE L*a*b* image in sRGB; Pillow converts it only through colour profiles."""
    from PIL import ImageCms

    profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    if converted is None:
        raise ExampleError("an image in the mode LAB that cannot be converted; save it as RGB")
    return converted
