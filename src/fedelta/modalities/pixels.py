"""Single images in every form a data set may hold them: encoded bytes, files, Pillow images, arrays of numbers."""

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
from fedelta.modalities.gray_range import EIGHT_BIT, Levels
from fedelta.modalities.modes import DEEP_MODES, GRAY_MODES, eight_bit, is_deep_colour

if TYPE_CHECKING:
    from PIL.Image import Image

# First bytes to the only format they can be. Pillow tries one format after the other, which for small
# images takes longer than decoding them.
_FORMATS = {b"\x89PN": ["PNG"], b"\xff\xd8\xff": ["JPEG"], b"RIF": ["WEBP"]}
# The beginnings of formats that never have more than 8 bits a channel in Pillow, and where a PNG says how many it has.
_EIGHT_BIT_ONLY = (b"\xff\xd8\xff", b"RIF", b"GIF", b"BM")
_PNG_DEPTH = 24

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

# Above this many pixels an image is decoded to a smaller size: what follows needs several copies of it.
_LARGE = 2**25
# The largest that is decoded as a whole, Pillow's own limit: 256 MiB in colour.
_LARGEST = 89_478_485


@dataclass(frozen=True)
class ImageShape:
    """Channels (1 or 3), height and width in pixels."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded.

    Args:
        shape: of it.
        has_frames: whether its file holds more images after it.
    """

    shape: ImageShape
    has_frames: bool = False


def read_header(value: object) -> Header:
    """The header of an image; nothing else of an encoded one is read.

    Raises:
        ExampleError: `value` is no image.
    """
    if (numbers := _numbers(value)) is not None:
        return Header(ImageShape(1 if numbers.ndim == 2 else 3, *numbers.shape[:2]))
    with _open(value) as image:
        width, height = image.size if _orientation(image) < 5 else reversed(image.size)
        shape = ImageShape(1 if image.mode in GRAY_MODES else 3, height, width)
        return Header(shape, _has_frames(image))


def measure(value: object) -> ImageShape:
    """The shape of an image by its header.

    Raises:
        ExampleError: `value` is no image.
    """
    return read_header(value).shape


def decode(
    value: object, shape: ImageShape, levels: Levels = EIGHT_BIT, *, on_white: bool = False
) -> NDArray[np.uint8]:
    """The pixels of an image, uint8 of shape [channels, height, width].

    Palette, transparent, CMYK and other images become 8-bit gray or RGB; a note of the camera on how to turn
    the image is followed. An image of another size is resized, bilinear with antialiasing, without regard to
    its aspect ratio (as the ViT image processors do).

    Args:
        value: bytes, `{"bytes": ..., "path": ...}`, a path, a Pillow image or an array (see `_numbers`).
        shape: of the result.
        levels: what becomes black and white where there are more than 8 bits.
        on_white: put what is transparent on white; otherwise transparency is dropped.

    Raises:
        ExampleError: `value` is no image, is damaged, or has far more pixels than anything needs.
    """
    from PIL import Image

    mode = "L" if shape.channels == 1 else "RGB"
    pixels = _loaded(value, mode, levels, max(shape.height, shape.width), on_white=on_white)
    if pixels.size != (shape.width, shape.height):
        pixels = pixels.resize((shape.width, shape.height), Image.Resampling.BILINEAR)
    return _channels_first(pixels)


def decode_whole(
    value: object, channels: int, levels: Levels, side: int, *, on_white: bool = False
) -> NDArray[np.uint8]:
    """As `decode`, at the image's own size; one of more than 2^25 pixels at a smaller one.

    Args:
        value: see `decode`.
        channels: of the result, 1 or 3.
        levels: see `decode`.
        side: pixels that are wanted of it in the end; a smaller size has at least twice as many on each side.
        on_white: see `decode`.
    """
    return _channels_first(_loaded(value, "L" if channels == 1 else "RGB", levels, side, on_white=on_white))


def extremes(value: object) -> tuple[float, float] | None:
    """Smallest and largest value of an image of more than 8 bits; None of any other, which is not decoded.

    Raises:
        ExampleError: `value` is no image or is damaged.
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
        return None  # it is refused when it is read
    return float(numbers.min()), float(numbers.max())


def brightest_of_deep_colour(value: object) -> int | None:
    """The largest value, 0..255 of the upper 8 bits, of a colour image of 16 bits a channel; None of any other.

    Raises:
        ExampleError: `value` is no image or is damaged.
    """
    if _numbers(value) is not None or _is_eight_bit(value):
        return None
    with _open(value) as image:
        if image.mode in GRAY_MODES or not is_deep_colour(image, _png_depth(_head(value))):
            return None
        _load(image, image.size)
        return int(np.asarray(image.convert("RGB")).max())


def _channels_first(pixels: Image) -> NDArray[np.uint8]:
    # A copy: Pillow lends its own memory read-only.
    array = np.array(pixels, dtype=np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _loaded(value: object, mode: str, levels: Levels, side: int, *, on_white: bool) -> Image:
    """The image in `mode`, turned; at its own size, unless that is too large."""
    from PIL import Image

    if (numbers := _numbers(value)) is not None:
        return Image.fromarray(levels.eight_bit(numbers)).convert(mode)
    with _open(value) as image:
        orientation = _orientation(image)
        _load(image, (2 * side, 2 * side))
        pixels = eight_bit(image, mode, levels, on_white=on_white)
    if pixels.width * pixels.height > _LARGE and (factor := min(pixels.size) // (2 * side)) > 1:
        pixels = pixels.reduce(factor)
    if orientation in _TURNS:
        pixels = pixels.transpose(Image.Transpose[_TURNS[orientation]])
    return pixels


def _load(image: Image, at_least: tuple[int, int]) -> None:
    """Decodes; a large JPEG, which can be had at a fraction of its size, to no less than `at_least`."""
    if image.width * image.height > _LARGE:
        image.draft(image.mode, at_least)
    if image.width * image.height > _LARGEST:
        raise ExampleError(
            f"a picture of {image.width:,} x {image.height:,} pixels, expected at most {_LARGEST:,} in all; save it "
            "smaller, or as JPEG"
        )
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders fail on damaged bytes with whatever they run into
        raise ExampleError(f"damaged image: {error or type(error).__name__}") from error


@contextmanager
def _open(value: object) -> Iterator[Image]:
    """A Pillow image that is not decoded yet; one that was given stays open."""
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
            # What is too large is refused here, with a word.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(value, str):
                return Image.open(value)
            return Image.open(io.BytesIO(value), formats=_FORMATS.get(value[:3]))
    except UnidentifiedImageError:
        raise ExampleError("no image in a known format") from None
    except Image.DecompressionBombError:
        raise ExampleError(f"a picture of more than {2 * _LARGEST:,} pixels; save it smaller") from None
    except OSError as error:
        raise ExampleError(error.strerror or str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # as in `_load`: headers may be damaged, too
        raise ExampleError(f"damaged image: {error or type(error).__name__}") from error


def _content(value: object) -> bytes | str:
    """Encoded bytes, or the path of a file."""
    if value is None:
        raise ExampleError("no image")
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or b""
    if isinstance(value, Path):
        try:
            return str(value.expanduser())
        except RuntimeError as error:
            raise ExampleError(str(error)) from error
    if not isinstance(value, bytes | str):
        raise ExampleError(f"no image but {type(value).__name__}")
    return value


def _head(value: object) -> bytes:
    """The first bytes of an encoded image; none of what is no file."""
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
        return b""  # said where it is opened


def _png_depth(head: bytes) -> int | None:
    """Bits a channel of a PNG file; None of any other."""
    return head[_PNG_DEPTH] if head.startswith(b"\x89PN") and len(head) > _PNG_DEPTH else None


def _is_eight_bit(value: object) -> bool:
    """Whether the first bytes alone say that there are no more than 8 bits a channel."""
    head = _head(value)
    depth = _png_depth(head)
    return head.startswith(_EIGHT_BIT_ONLY) or (depth is not None and depth <= 8)


def _numbers(value: object) -> NDArray[Any] | None:
    """An array [H, W] or [H, W, 3] of finite numbers, whose range is to be found; None of what is no array.

    Args:
        value: lists or an array of shape [H, W], [H, W, C] or [C, H, W]; a fourth channel is dropped.

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
        raise ExampleError("an array with other values than numbers")
    if not np.isfinite(array).all():
        raise ExampleError("an array with values that are NaN or infinite")
    return array[..., :3] if array.ndim == 3 else array


def _has_frames(image: Image) -> bool:
    if image.format in {"MPO", "JPEG", None}:
        return False  # in MPO, of cameras, what follows is the same picture for another purpose
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001 it looks for the second image, which may be damaged in any way
        return False


def _orientation(image: Image) -> int:
    """The camera's note on how to turn the image, 1..8; 1, as it is, where there is none or no such number."""
    from PIL import ExifTags

    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        # Pillow turns TIFF on its own, and would decode a whole PNG to look for a note behind the pixels.
        return 1
    try:
        noted = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 the image may be fine although its notes are not, in whatever way
        return 1
    return noted if noted in _TURNS else 1
