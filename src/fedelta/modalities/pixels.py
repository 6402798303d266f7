"""Single images in every form a data set may hold them: encoded bytes, files, arrays of numbers."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedelta.modalities.base import ExampleError

if TYPE_CHECKING:
    from PIL.Image import Image

# As Pillow names them: one channel of 1, 8, 16 or 32 bits.
_GRAY_MODES = frozenset({"1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N"})

# First bytes to the only format they can be. Pillow tries one format after the other, which for small
# images takes longer than decoding them.
_FORMATS = {b"\x89PN": ["PNG"], b"\xff\xd8\xff": ["JPEG"], b"RIF": ["WEBP"]}

# EXIF orientation to Pillow's name of what undoes it; from 5 on, width and height change places.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@dataclass(frozen=True)
class ImageShape:
    """Channels (1 or 3), height and width in pixels."""

    channels: int
    height: int
    width: int


def measure(value: object) -> ImageShape:
    """The shape of an image; reads only the header of an encoded one.

    Raises:
        ExampleError: `value` is no image.
    """
    with _open(value) as image:
        width, height = image.size if _orientation(image) < 5 else reversed(image.size)
        return ImageShape(1 if image.mode in _GRAY_MODES else 3, height, width)


def decode(value: object, shape: ImageShape) -> NDArray[np.uint8]:
    """The pixels of an image, uint8 of shape [channels, height, width].

    Palette, transparent, 16-bit and CMYK images become 8-bit gray or RGB; a note of the camera on how to turn
    the image is followed. An image of another size is resized, bilinear with antialiasing, without regard to
    its aspect ratio (as the ViT image processors do).

    Args:
        value: bytes, `{"bytes": ..., "path": ...}` or an array (see `_from_array`).
        shape: of the result.

    Raises:
        ExampleError: `value` is no image or is cut off.
    """
    from PIL import Image

    with _open(value) as image:
        orientation = _orientation(image)
        try:
            image.load()
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise ExampleError(f"damaged image: {error}") from error
        pixels = _eight_bit(image, "L" if shape.channels == 1 else "RGB")
    if orientation in _TURNS:
        pixels = pixels.transpose(Image.Transpose[_TURNS[orientation]])
    if pixels.size != (shape.width, shape.height):
        pixels = pixels.resize((shape.width, shape.height), Image.Resampling.BILINEAR)
    # A copy: Pillow lends its own memory read-only.
    array = np.array(pixels, dtype=np.uint8)
    return array[None] if shape.channels == 1 else array.transpose(2, 0, 1)


def _open(value: object) -> Image:
    from PIL import Image, UnidentifiedImageError

    if value is None:
        raise ExampleError("no image")
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or b""
    if isinstance(value, list | np.ndarray):
        return _from_array(value)
    if not isinstance(value, bytes | str):
        raise ExampleError(f"no image but {type(value).__name__}")
    try:
        if isinstance(value, str):
            return Image.open(value)
        return Image.open(io.BytesIO(value), formats=_FORMATS.get(value[:3]))
    except UnidentifiedImageError:
        raise ExampleError("no image in a known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ExampleError(str(error)) from error


def _from_array(value: list[object] | NDArray[np.generic]) -> Image:
    """An image from numbers of shape [H, W], [H, W, C] or [C, H, W]: integers in 0..255 or floats in 0..1."""
    from PIL import Image

    try:
        array = np.asarray(value)
        shape = array.shape
    except ValueError:
        raise ExampleError("rows of unequal length") from None
    if array.ndim == 3 and array.shape[-1] not in {1, 3, 4}:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[-1] not in {3, 4}):
        raise ExampleError(f"an array of shape {shape}, expected [H, W], [H, W, C] or [C, H, W]")
    floats = array.dtype.kind == "f"
    if array.dtype.kind not in "iufb" or not (array.min() >= 0 and array.max() <= (1 if floats else 255)):
        raise ExampleError("an array with other values than integers in 0..255 or floats in 0..1")
    if array.ndim == 3:
        array = array[..., :3]
    return Image.fromarray((np.rint(array * 255) if floats else array).astype(np.uint8))


def _orientation(image: Image) -> int:
    """The camera's note on how to turn the image, 1..8; 1, as it is, where there is none."""
    from PIL import ExifTags

    if image.format == "PNG" and "exif" not in image.info:
        # Pillow would decode the whole image to look for a note behind the pixels.
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):
        # The image may be fine although its notes are not.
        return 1


def _eight_bit(image: Image, mode: str) -> Image:
    """`image` in `mode`, "L" or "RGB"."""
    from PIL import Image

    if image.mode == mode:
        return image.copy()
    if image.mode in _GRAY_MODES and image.mode not in {"1", "L"}:
        # Pillow would clip at 255 and turn nearly every 16-bit image white.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    with warnings.catch_warnings():
        # Pillow prefers RGBA for palettes with transparency; transparency is dropped here in any case.
        warnings.simplefilter("ignore", UserWarning)
        return image.convert(mode)
