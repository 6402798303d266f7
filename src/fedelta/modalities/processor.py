"""Runs the image processor of a checkpoint, so that images are prepared exactly as in its training.

transformers has one class per way of preparing images, with a variant for Pillow (the variants for torchvision give
slightly different pixels). This module chooses the class as `AutoImageProcessor` does, scales it to the model's input
size, and verifies on noise that the processor fits the rest of fedelta: an image of any shape must become one square of
the model's size, with values that are scaled and shifted per channel.

Shapes: C channels, H height, W width, S side of the model's input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedelta.errors import ModelError

if TYPE_CHECKING:
    from transformers.image_processing_backends import PilBackend

FILE = "preprocessor_config.json"
STRETCH = 'set `data.resize = "stretch"`; images are then resized without keeping their aspect ratio.'
_COMPOSITE = "processor_config.json"  # of multimodal models; newer ones keep the image processor in it
_DEFAULT = "ViTImageProcessor"
_SIZES = ("size", "crop_size", "pad_size")
_LARGEST_SIZE = 4096  # pixels; far larger than any model's input, and would only fill the memory
_TOLERANCE = 1e-3  # of normalised values, where 1 gray level is 0.004 or more

# Settings with which a processor returns uint8 pixels: values are scaled later, for a whole batch.
_PIXELS_ONLY = {"do_rescale": False, "do_normalize": False, "do_convert_rgb": False}
_SECOND_NORMALISATION = "include_top"  # of EfficientNet


class UnfollowableError(ValueError):
    """An image processor cannot be used here. The message gives the reason."""


@dataclass(frozen=True)
class Processor:
    """The part of a checkpoint's image preparation that comes before pixel values are scaled and normalised.

    Args:
        content: `preprocessor_config.json` at the model's size, as JSON text.
        side: S, in pixels.
        is_stretch: whether the processor is exactly a bilinear resize to a square.
    """

    content: str
    side: int
    is_stretch: bool

    @property
    def fields(self) -> dict[str, Any]:
        """The content of the file; Any: JSON values."""
        return dict(json.loads(self.content))

    @property
    def on_white(self) -> bool:
        """Whether transparent pixels are put on white; otherwise transparency is dropped."""
        return bool(self.fields.get("do_convert_rgb"))

    def pixels(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The model's pixels, uint8 of shape [3, S, S], for an image, uint8 of shape [3, H, W].

        Raises:
            ModelError: the result has another shape, because the processor does not resize or keeps the aspect ratio.
        """
        try:
            pixels = _pixels(_pixel_processor(self.content), image)
        except Exception as error:  # of many types, for extreme shapes: a side may be scaled to 0
            raise ModelError(
                f"the checkpoint's image processor fails for an image of {image.shape[1]} x {image.shape[2]}: "
                f"{error or type(error).__name__}",
                hint=STRETCH,
            ) from error
        if pixels.shape != (3, self.side, self.side):
            raise ModelError(
                f"the checkpoint's image processor turns an image of {image.shape[1]} x {image.shape[2]} into "
                f"{pixels.shape[1]} x {pixels.shape[2]} pixels, but the model takes {self.side} x {self.side}",
                hint=STRETCH,
            )
        return pixels


@dataclass(frozen=True)
class Followed:
    """A verified processor, and the scaling of values that follows it: `(x / 255 - mean) / std`.

    Args:
        processor: at the model's size.
        mean: one value for each of 3 channels.
        std: one value for each of 3 channels.
        native: side of the processor's output before it was scaled to the model.
    """

    processor: Processor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    native: int


def read_preprocessor(place: str) -> dict[str, object]:
    """The image processor's configuration in a local directory or on the hub; {} if there is none.

    Raises:
        ModelError: a file does not hold a JSON object.
    """
    nested = _read_json(place, _COMPOSITE).get("image_processor")
    return dict(nested) if isinstance(nested, dict) and nested else _read_json(place, FILE)


def follow(content: Mapping[str, object], family: str, side: int | None) -> Followed:
    """The processor that `content` describes, verified and scaled to the model.

    Args:
        content: of `preprocessor_config.json`.
        family: `model_type`; used if `content` does not name a class.
        side: side of the model's input in pixels, to which the processor's sizes are scaled; None: no scaling.

    Raises:
        UnfollowableError: the processor cannot be used here.
    """
    return _follow(json.dumps(content, sort_keys=True), family, side)


@lru_cache(maxsize=16)
def _follow(text: str, family: str, side: int | None) -> Followed:
    content: dict[str, Any] = json.loads(text)
    name = _class_name(content, family)
    try:
        processor = _class_of(name).from_dict(content)
        _check_sizes(processor, name)
        native = _native_side(processor, name, side)
        scaled = processor if side in {None, native} else _at_side(processor, side / native)
        text = json.dumps(scaled.to_dict(), sort_keys=True)
        result = Processor(text, side or native, is_stretch=_is_stretch(scaled, side or native))
        return Followed(result, *_statistics(scaled, result, name), native)
    except UnfollowableError:
        raise
    except Exception as error:  # of many types, raised by the class for values that it does not expect
        raise UnfollowableError(f"its {name} fails: {error or type(error).__name__}") from error


@lru_cache(maxsize=16)
def _pixel_processor(text: str) -> PilBackend:
    """The processor of a configuration, without the scaling of values."""
    fields = json.loads(text)
    return _variant(_class_of(_class_name(fields, "")).from_dict(fields))


def _read_json(place: str, name: str) -> dict[str, object]:
    from transformers.utils.hub import cached_file

    path = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
    try:
        return {} if path is None else dict(json.loads(Path(path).read_text(encoding="utf-8-sig")))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} does not hold a JSON object: {error}") from error


def _class_name(content: Mapping[str, object], family: str) -> str:
    """The class that `AutoImageProcessor` would choose: from the file (current or older key), else by the family."""
    from transformers.models.auto import image_processing_auto

    name = content.get("image_processor_type")
    name = content.get("feature_extractor_type") if name is None else name
    if name is None:
        families = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]  # imported there
        classes = families.get(family) or {}
        name = classes.get("pil") or classes.get("torchvision") or _DEFAULT
    return str(name).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")


def _class_of(name: str) -> type[PilBackend]:
    """The Pillow variant of an image processor class of transformers."""
    from transformers.image_processing_backends import PilBackend
    from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

    variant = get_image_processor_class_from_name(f"{name}Pil")
    if not isinstance(variant, type) or not issubclass(variant, PilBackend):
        raise UnfollowableError(f"transformers has no Pillow variant of its processor {name!r}")
    return variant


def _variant(processor: PilBackend) -> PilBackend:
    """A copy of `processor` that does not scale values."""
    second = {_SECOND_NORMALISATION: False} if _SECOND_NORMALISATION in processor.valid_kwargs.__annotations__ else {}
    changed: PilBackend = type(processor).from_dict(processor.to_dict() | _PIXELS_ONLY | second)
    return changed


def _check_sizes(processor: PilBackend, name: str) -> None:
    sizes = [value for key in _SIZES for value in dict(getattr(processor, key, None) or {}).values() if value]
    if max(sizes, default=0) > _LARGEST_SIZE:
        raise UnfollowableError(f"its {name} has a size of {max(sizes):,} pixels, expected at most {_LARGEST_SIZE:,}")


def _native_side(processor: PilBackend, name: str, side: int | None) -> int:
    """Side of the square that a processor makes of any image or, failing that, of a square image of `side`."""
    variant = _variant(processor)
    try:
        return _side_of(_pixels(variant, _noise(96, 64)), name)
    except UnfollowableError:
        if side is None:
            raise
        return _side_of(_pixels(variant, _noise(side, side)), name)


def _at_side(processor: PilBackend, factor: float) -> PilBackend:
    """A copy of `processor` with all sizes multiplied by `factor`."""
    fields = processor.to_dict()
    for key in _SIZES:
        if isinstance(fields.get(key), Mapping):
            fields[key] = {name: round(value * factor) for name, value in fields[key].items() if value}
    changed: PilBackend = type(processor).from_dict(fields)
    return changed


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)


def _pixels(processor: PilBackend, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from transformers.image_utils import ChannelDimension

    output = processor(image, input_data_format=ChannelDimension.FIRST)
    pixels: NDArray[np.uint8] = output["pixel_values"][0]
    return pixels


def _side_of(pixels: NDArray[np.uint8], name: str) -> int:
    """Side of the square that a processor has made of the noise."""
    is_image = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
    shape = np.shape(pixels) if is_image else ()
    if len(shape) != 3 or shape[0] != 3:
        raise UnfollowableError(f"its {name} does not turn an image into one image of three channels")
    if shape[1] != shape[2]:
        raise UnfollowableError(
            f"its {name} turns an image of 96 x 64 into {shape[1]} x {shape[2]} pixels, expected a square for any image"
        )
    return int(shape[1])


def _is_stretch(processor: PilBackend, side: int) -> bool:
    """Whether a processor equals Pillow's bilinear resize, tried on a smaller and a larger image.

    Raises:
        UnfollowableError: an image of the model's size does not become a square of `side`.
    """
    from PIL import Image

    variant = _variant(processor)
    if (shape := np.shape(_pixels(variant, _noise(side, side)))) != (3, side, side):
        raise UnfollowableError(f"its sizes cannot be scaled to {side} pixels: its output is {shape[1]} x {shape[2]}")
    for noise in (_noise(side + side // 2 + 1, side + 1), _noise(max(1, side // 2), side)):
        resized = Image.fromarray(noise.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BILINEAR)
        if not np.array_equal(_pixels(variant, noise), np.asarray(resized).transpose(2, 0, 1)):
            return False
    return True


def _statistics(processor: PilBackend, followed: Processor, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by channel on the 0..1 scale, from the processor's outputs for black and for white.

    Raises:
        UnfollowableError: values between black and white are not mapped linearly.
    """
    fields = processor.to_dict() | {"do_convert_rgb": False}
    for key in ("image_mean", "image_std"):
        if len(channels := list(fields.get(key) or ())) == 1:  # of a model of one channel
            fields[key] = channels * 3
    complete = type(processor).from_dict(fields)
    noise = _noise(followed.side, followed.side)
    ends = [_pixels(complete, np.full_like(noise, level)).astype(np.float64) for level in (0, 255)]
    middle = ends[0].shape[-1] // 2  # the edges may be padding
    black, white = (end[:, middle, middle] for end in ends)
    if not (white > black).all():
        raise UnfollowableError(f"its {name} does not map white to a larger value than black")
    std = 1 / (white - black)
    mean = 0 - black * std
    expected = (followed.pixels(noise) / 255 - mean[:, None, None]) / std[:, None, None]
    if np.abs(expected - _pixels(complete, noise)).max() > _TOLERANCE * max(1.0, float((1 / std).max())):
        raise UnfollowableError(f"its {name} does more than scale and shift pixel values per channel")
    return tuple(map(float, mean)), tuple(map(float, std))
