"""The image processor of a checkpoint, followed to the pixel.

transformers has a class for each way of preparing images, and Pillow's variant of it (the ones that need torchvision
give other pixels). That class does the work here; what belongs to fedelta is to choose it as `AutoImageProcessor`
does, to give it the model's size, and to prove on noise that it can be followed: an image of any shape becomes one
square of the model's size, and its values are scaled and shifted by channel.

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
STRETCH = 'set `data.resize = "stretch"`: images are then resized without regard to their aspect ratio.'
_COMPOSITE = "processor_config.json"  # of models of more than images; newer ones keep the image processor in it
_DEFAULT = "ViTImageProcessor"
_SIZES = ("size", "crop_size", "pad_size")
_LARGEST_SIZE = 4096  # pixels; a size far above any model's would only fill the memory
_TOLERANCE = 1e-3  # of values after the normalisation, on which 1 gray level is 0.004 and more

# A processor that gives pixels: what happens to values comes after it, for a whole batch.
_PIXELS_ONLY = {"do_rescale": False, "do_normalize": False, "do_convert_rgb": False}
_SECOND_NORMALISATION = "include_top"  # of EfficientNet


class UnfollowableError(ValueError):
    """A processor does something that cannot be followed; the text says what."""


@dataclass(frozen=True)
class Processor:
    """What a checkpoint does to pixels before their values are scaled and normalised.

    Args:
        content: of `preprocessor_config.json` at the model's size, as JSON.
        side: S, in pixels.
        is_stretch: whether that is a bilinear resize to a square, and nothing else.
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
        """Whether transparent images are put on white; otherwise transparency is dropped."""
        return bool(self.fields.get("do_convert_rgb"))

    def pixels(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The model's pixels, uint8 of shape [3, S, S], for an image, uint8 of shape [3, H, W].

        Raises:
            ModelError: they have another shape, since the processor resizes nothing or keeps the aspect ratio.
        """
        try:
            found = _pixels(_of_pixels(self.content), image)
        except Exception as error:  # whatever the class makes of odd shapes: a side that is scaled to nothing
            raise ModelError(
                f"the checkpoint's image processor fails for an image of {image.shape[1]} x {image.shape[2]}: "
                f"{error or type(error).__name__}",
                hint=STRETCH,
            ) from error
        if found.shape != (3, self.side, self.side):
            raise ModelError(
                f"the checkpoint's image processor makes {found.shape[1]} x {found.shape[2]} pixels of an image of "
                f"{image.shape[1]} x {image.shape[2]}, expected {self.side} x {self.side} as the model takes them",
                hint=STRETCH,
            )
        return found


@dataclass(frozen=True)
class Followed:
    """A processor, and what becomes of the values: `(x / 255 - mean) / std`.

    Args:
        processor: at the model's size.
        mean: one for each of 3 channels.
        std: likewise.
        native: side of the square that the checkpoint's own file makes.
    """

    processor: Processor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    native: int


def read_preprocessor(place: str) -> dict[str, object]:
    """What a local directory or the hub says of a checkpoint's image processor, {} where nothing.

    Raises:
        ModelError: a file holds no JSON object.
    """
    within = _read_json(place, _COMPOSITE).get("image_processor")
    return dict(within) if isinstance(within, dict) and within else _read_json(place, FILE)


def follow(content: Mapping[str, object], family: str, side: int | None) -> Followed:
    """The processor that `content` describes.

    Args:
        content: of `preprocessor_config.json`.
        family: `model_type`, which stands in where `content` does not name a class.
        side: of the model's input in pixels; the processor's sizes are scaled to it. None: its own.

    Raises:
        UnfollowableError: says why not.
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
    except Exception as error:  # whatever else the class makes of a foreign file
        raise UnfollowableError(f"its {name} cannot be used: {error or type(error).__name__}") from error


@lru_cache(maxsize=16)
def _of_pixels(text: str) -> PilBackend:
    fields = json.loads(text)
    return _variant(_class_of(_class_name(fields, "")).from_dict(fields))


def _read_json(place: str, name: str) -> dict[str, object]:
    from transformers.utils.hub import cached_file

    path = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
    try:
        return {} if path is None else dict(json.loads(Path(path).read_text(encoding="utf-8-sig")))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} holds no JSON object: {error}") from error


def _class_name(content: Mapping[str, object], family: str) -> str:
    """As `AutoImageProcessor` finds it: by the file, in its older form too, else by the family."""
    from transformers.models.auto import image_processing_auto

    named = content.get("image_processor_type")
    named = content.get("feature_extractor_type") if named is None else named
    if named is None:
        families = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]  # imported there
        classes = families.get(family) or {}
        named = classes.get("pil") or classes.get("torchvision") or _DEFAULT
    return str(named).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")


def _class_of(name: str) -> type[PilBackend]:
    """Pillow's variant of a class of transformers."""
    from transformers.image_processing_backends import PilBackend
    from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

    found = get_image_processor_class_from_name(f"{name}Pil")
    if not isinstance(found, type) or not issubclass(found, PilBackend):
        raise UnfollowableError(f"its processor is {name!r}, of which transformers has no variant for Pillow")
    return found


def _variant(processor: PilBackend) -> PilBackend:
    """The same without what happens to values."""
    second = {_SECOND_NORMALISATION: False} if _SECOND_NORMALISATION in processor.valid_kwargs.__annotations__ else {}
    changed: PilBackend = type(processor).from_dict(processor.to_dict() | _PIXELS_ONLY | second)
    return changed


def _check_sizes(processor: PilBackend, name: str) -> None:
    sizes = [value for key in _SIZES for value in dict(getattr(processor, key, None) or {}).values() if value]
    if max(sizes, default=0) > _LARGEST_SIZE:
        raise UnfollowableError(f"its {name} has a size of {max(sizes):,} pixels, expected at most {_LARGEST_SIZE:,}")


def _native_side(processor: PilBackend, name: str, side: int | None) -> int:
    """Of the square that a processor makes of any image, or failing that, of one that is a square of `side`."""
    variant = _variant(processor)
    try:
        return _side_of(_pixels(variant, _noise(96, 64)), name)
    except UnfollowableError:
        if side is None:
            raise
        return _side_of(_pixels(variant, _noise(side, side)), name)


def _at_side(processor: PilBackend, factor: float) -> PilBackend:
    """The same with all its sizes in proportion."""
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
    found: NDArray[np.uint8] = output["pixel_values"][0]
    return found


def _side_of(pixels: NDArray[np.uint8], name: str) -> int:
    """Of the square that a processor makes of the noise."""
    is_image = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
    shape = np.shape(pixels) if is_image else ()
    if len(shape) != 3 or shape[0] != 3:
        raise UnfollowableError(f"its {name} makes something else of an image than one image of three channels")
    if shape[1] != shape[2]:
        raise UnfollowableError(
            f"its {name} makes {shape[1]} x {shape[2]} pixels of an image of 96 x 64, expected a square for all images"
        )
    return int(shape[1])


def _is_stretch(processor: PilBackend, side: int) -> bool:
    """Whether two images, one smaller and one larger, become what Pillow's bilinear resize makes of them.

    Raises:
        UnfollowableError: not even one of the model's size becomes a square of `side`.
    """
    from PIL import Image

    pixels = _variant(processor)
    if (found := np.shape(_pixels(pixels, _noise(side, side)))) != (3, side, side):
        raise UnfollowableError(f"its sizes cannot be scaled to {side} pixels: it makes {found[1]} x {found[2]}")
    for noise in (_noise(side + side // 2 + 1, side + 1), _noise(max(1, side // 2), side)):
        resized = Image.fromarray(noise.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BILINEAR)
        if not np.array_equal(_pixels(pixels, noise), np.asarray(resized).transpose(2, 0, 1)):
            return False
    return True


def _statistics(processor: PilBackend, followed: Processor, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by channel on the scale 0..1, from what becomes of black and of white.

    Raises:
        UnfollowableError: values in between are no straight line.
    """
    fields = processor.to_dict() | {"do_convert_rgb": False}
    for key in ("image_mean", "image_std"):
        if len(given := list(fields.get(key) or ())) == 1:  # of a model of one channel
            fields[key] = given * 3
    values = type(processor).from_dict(fields)
    noise = _noise(followed.side, followed.side)
    ends = [_pixels(values, np.full_like(noise, level)).astype(np.float64) for level in (0, 255)]
    middle = ends[0].shape[-1] // 2  # what a crop adds at the edges is black
    black, white = (end[:, middle, middle] for end in ends)
    if not (white > black).all():
        raise UnfollowableError(f"its {name} does not make white brighter than black")
    std = 1 / (white - black)
    mean = 0 - black * std
    expected = (followed.pixels(noise) / 255 - mean[:, None, None]) / std[:, None, None]
    if np.abs(expected - _pixels(values, noise)).max() > _TOLERANCE * max(1.0, float((1 / std).max())):
        raise UnfollowableError(f"its {name} does more to the values of pixels than to scale and shift them by channel")
    return tuple(map(float, mean)), tuple(map(float, std))
