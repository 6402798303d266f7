"""Pillow's modes: what each becomes in 8 bits."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from fedelta.modalities.base import ExampleError
from fedelta.modalities.gray_range import Levels

if TYPE_CHECKING:
    from PIL.Image import Image

# One channel of more than 8 bits: integers, and floating-point numbers.
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
GRAY_MODES = DEEP_MODES | {"1", "L"}

# Colours that are multiplied with their opacity, and what takes that back.
_MULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
_BITS_PER_SAMPLE = 258  # a tag of TIFF


def eight_bit(image: Image, mode: str, levels: Levels, *, on_white: bool) -> Image:
    """`image` in `mode`, "L" or "RGB"; a copy.

    Args:
        image: decoded, in any mode.
        mode: of the result.
        levels: what becomes black and white where there are more than 8 bits.
        on_white: put what is transparent on white, as the image processors of transformers do that convert to RGB;
            otherwise transparency is dropped.

    Raises:
        ExampleError: its values are not finite, or far outside of `levels`.
    """
    from PIL import Image

    if image.mode == mode and (not on_white or "transparency" not in image.info):
        return image.copy()
    if image.mode in DEEP_MODES:
        numbers = np.asarray(image)
        if not np.isfinite(numbers).all():
            raise ExampleError("an image with values that are NaN or infinite")
        return Image.fromarray(levels.eight_bit(numbers)).convert(mode)
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
    """Whether a colour image has more than 8 bits a channel, of which Pillow reads the upper 8.

    Args:
        image: opened.
        png_depth: bits a channel of a PNG file, None of another.
    """
    if png_depth is not None:
        return png_depth > 8
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return image.format == "TIFF" and max(bits, default=8) > 8


def _from_lab(image: Image) -> Image:
    """SRGB of CIE L*a*b*, which Pillow converts by colour profiles only."""
    from PIL import ImageCms

    profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    if converted is None:
        raise ExampleError("an image in the mode LAB that cannot be converted; save it as RGB")
    return converted
