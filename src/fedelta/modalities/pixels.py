"""Decodes single images in every form a data set may hold: encoded bytes, files, Pillow images, arrays of numbers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedelta.modalities.base import ExampleError
from fedelta.modalities.modes import DEEP_MODES, GRAY_MODES, eight_bit, is_deep_colour
from fedelta.modalities.value_range import EIGHT_BIT, ValueRange

if TYPE_CHECKING:
    from PIL.Image import Image

# First bytes to the only possible format. Without it Pillow tries all formats in turn, which takes longer than
# decoding a small image.
_FORMATS = {b"\x89PN": ["PNG"], b"\xff\xd8\xff": ["JPEG"], b"RIF": ["WEBP"]}
# First bytes of the formats that never have more than 8 bits per channel in Pillow.
_EIGHT_BIT_ONLY = (b"\xff\xd8\xff", b"RIF", b"GIF", b"BM")
_PNG_DEPTH = 24  # position of the byte of a PNG file that holds the bits per channel

# EXIF orientation to the Pillow transposition that undoes it; from 5 on, width and height are swapped.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}

# Images with more pixels than this are reduced while decoding: later steps need several copies in memory.
_LARGE = 2**25
# Most pixels that are decoded at full size; Pillow's own limit, 256 MiB in colour.
_LARGEST = 89_478_485


@dataclass(frozen=True)
class ImageShape:
    """Channels (1 or 3), height and width in pixels."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Header:
    """Properties of an image that are known before it is decoded.

    Args:
        shape: of the image.
        has_frames: whether its file holds further images.
    """

    shape: ImageShape
    has_frames: bool = False


def read_header(value: object) -> Header:
    """The header of an image; the pixels of an encoded one are not read.

    Raises:
        ExampleError: `value` is not an image.
    """
    if (numbers := _numbers(value)) is not None:
        return Header(ImageShape(1 if numbers.ndim == 2 else 3, *numbers.shape[:2]))
    with _open(value) as image:
        width, height = image.size if _orientation(image) < 5 else reversed(image.size)
        shape = ImageShape(1 if image.mode in GRAY_MODES else 3, height, width)
        return Header(shape, _has_frames(image))


def image_shape(value: object) -> ImageShape:
    """The shape of an image, from its header.

    Raises:
        ExampleError: `value` is not an image.
    """
    return read_header(value).shape


def decode_image(
    value: object, shape: ImageShape, value_range: ValueRange = EIGHT_BIT, *, on_white: bool = False
) -> NDArray[np.uint8]:
    """The pixels of an image, uint8 of shape [channels, height, width].

    Palette, transparent, CMYK and other images become 8-bit gray or RGB, and EXIF orientation is applied. An image of
    another size is resized, bilinear with antialiasing, without keeping its aspect ratio (as the ViT image processor
    does).

    Args:
        value: bytes, `{"bytes": ..., "path": ...}`, a path, a Pillow image or an array (see `_numbers`).
        shape: of the result.
        value_range: values that become black and white in images of more than 8 bits.
        on_white: put transparent pixels on white; otherwise transparency is dropped.

    Raises:
        ExampleError: `value` is not an image, is damaged, or is larger than the limit.
    """
    from PIL import Image

    mode = "L" if shape.channels == 1 else "RGB"
    pixels = _loaded(value, mode, value_range, max(shape.height, shape.width), on_white=on_white)
    if pixels.size != (shape.width, shape.height):
        pixels = pixels.resize((shape.width, shape.height), Image.Resampling.BILINEAR)
    return _channels_first(pixels)


def decode_full_size(
    value: object, channels: int, value_range: ValueRange, side: int, *, on_white: bool = False
) -> NDArray[np.uint8]:
    """The pixels of an image at its original size, or reduced if it has more than 2^25 pixels; see `decode_image`.

    Args:
        value: see `decode_image`.
        channels: of the result, 1 or 3.
        value_range: see `decode_image`.
        side: side in pixels that the image will finally have; a reduced image keeps at least twice as many per side.
        on_white: see `decode_image`.
    """
    return _channels_first(_loaded(value, "L" if channels == 1 else "RGB", value_range, side, on_white=on_white))


def extremes(value: object) -> tuple[float, float] | None:
    """Smallest and largest value of an image of more than 8 bits; None for other images, which are not decoded.

    Raises:
        ExampleError: `value` is not an image or is damaged.
    """
    numbers = _numbers(value)
    if numbers is None:
        if _is_eight_bit(value):
            return None
        with _open(value) as image:
            if image.mode not in DEEP_MODES:
                return None
            _load(image, image.size)
            numbers = np.asarray(image)
    if not np.isfinite(numbers).all():
        return None  # the image is refused when it is read
    return float(numbers.min()), float(numbers.max())


def brightest_of_deep_colour(value: object) -> int | None:
    """The largest value in the upper 8 bits, 0..255, of a colour image of 16 bits per channel; None for other images.

    Raises:
        ExampleError: `value` is not an image or is damaged.
    """
    if _numbers(value) is not None or _is_eight_bit(value):
        return None
    with _open(value) as image:
        if image.mode in GRAY_MODES or not is_deep_colour(image, _png_depth(_head(value))):
            return None
        _load(image, image.size)
        return int(np.asarray(image.convert("RGB")).max())


def _channels_first(pixels: Image) -> NDArray[np.uint8]:
    # A copy, because Pillow's buffer is read-only.
    array = np.array(pixels, dtype=np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _loaded(value: object, mode: str, value_range: ValueRange, side: int, *, on_white: bool) -> Image:
    """The image in `mode` and upright; at its original size unless that is too large."""
    from PIL import Image

    if (numbers := _numbers(value)) is not None:
        return Image.fromarray(value_range.eight_bit(numbers)).convert(mode)
    with _open(value) as image:
        orientation = _orientation(image)
        _load(image, (2 * side, 2 * side))
        pixels = eight_bit(image, mode, value_range, on_white=on_white)
    if pixels.width * pixels.height > _LARGE and (factor := min(pixels.size) // (2 * side)) > 1:
        pixels = pixels.reduce(factor)
    if orientation in _TURNS:
        pixels = pixels.transpose(Image.Transpose[_TURNS[orientation]])
    return pixels


def _load(image: Image, at_least: tuple[int, int]) -> None:
    """Decodes `image`; a large JPEG is decoded at a fraction of its size, but no smaller than `at_least`."""
    if image.width * image.height > _LARGE:
        image.draft(image.mode, at_least)
    if image.width * image.height > _LARGEST:
        raise ExampleError(
            f"an image of {image.width:,} x {image.height:,} pixels, expected at most {_LARGEST:,} in total; save it "
            "at a smaller size, or as JPEG"
        )
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of errors for damaged bytes
        raise ExampleError(f"damaged image: {error or type(error).__name__}") from error


@contextmanager
def _open(value: object) -> Iterator[Image]:
    """Opens an image without decoding it; a Pillow image that the caller passed in stays open."""
    from PIL import Image

    if isinstance(value, Image.Image):
        yield value
        return
    with _opened(_content(value)) as image:
        yield image


def _opened(value: bytes | str) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Images that are too large are refused in `_load`.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(value, str):
                return Image.open(value)
            return Image.open(io.BytesIO(value), formats=_FORMATS.get(value[:3]))
    except UnidentifiedImageError:
        raise ExampleError("not an image in a known format") from None
    except Image.DecompressionBombError:
        raise ExampleError(f"an image of more than {2 * _LARGEST:,} pixels; save it at a smaller size") from None
    except OSError as error:
        raise ExampleError(error.strerror or str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # as in `_load`: headers may be damaged too
        raise ExampleError(f"damaged image: {error or type(error).__name__}") from error


def _content(value: object) -> bytes | str:
    """Encoded bytes, or the path of a file."""
    if value is None:
        raise ExampleError("missing image")
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or b""
    if isinstance(value, Path):
        try:
            return str(value.expanduser())
        except RuntimeError as error:
            raise ExampleError(str(error)) from error
    if not isinstance(value, bytes | str):
        raise ExampleError(f"not an image but {type(value).__name__}")
    return value


def _head(value: object) -> bytes:
    """The first bytes of an encoded image; empty for other values."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value[: _PNG_DEPTH + 1]
    if not isinstance(value, str | Path):
        return b""
    try:
        with Path(value).expanduser().open("rb") as file:
            return file.read(_PNG_DEPTH + 1)
    except (OSError, RuntimeError, ValueError):
        return b""  # reported when the file is opened


def _png_depth(head: bytes) -> int | None:
    """Bits per channel of a PNG file; None for other formats."""
    return head[_PNG_DEPTH] if head.startswith(b"\x89PN") and len(head) > _PNG_DEPTH else None


def _is_eight_bit(value: object) -> bool:
    """Whether the first bytes alone show that an image has at most 8 bits per channel."""
    head = _head(value)
    depth = _png_depth(head)
    return head.startswith(_EIGHT_BIT_ONLY) or (depth is not None and depth <= 8)


def _numbers(value: object) -> NDArray[Any] | None:
    """An image given as numbers, as an array [H, W] or [H, W, 3] of finite values; None if `value` is not an array.

    Args:
        value: nested lists or an array of shape [H, W], [H, W, C] or [C, H, W]; a fourth channel is dropped.

    Any: integers or floats.
    """
    if not isinstance(value, list | np.ndarray):
        return None
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
    if array.dtype.kind not in "iufb":
        raise ExampleError("an array with values that are not numbers")
    if not np.isfinite(array).all():
        raise ExampleError("an array with values that are NaN or infinite")
    return array[..., :3] if array.ndim == 3 else array


def _has_frames(image: Image) -> bool:
    if image.format in {"MPO", "JPEG", None}:
        return False  # MPO, a camera format, holds further versions of the same picture
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001 Pillow looks for the second image, which may be damaged in any way
        return False


def _orientation(image: Image) -> int:
    """The EXIF orientation of an image, 1..8; 1 (upright) if there is none or it is invalid."""
    from PIL import ExifTags

    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        # Pillow rotates TIFF itself, and would decode a whole PNG to look for EXIF data after the pixels.
        return 1
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 damaged EXIF data, of any kind, do not make an image unusable
        return 1
    return orientation if orientation in _TURNS else 1
