"""Images: `pixel_values`, in a few tensor operations and without augmentation.

The output for an image is the same in every epoch, which is what lets the engine keep the outputs of a frozen prefix.

Differs from the image processors of transformers in one point: resizing is always bilinear with
antialiasing, also where a checkpoint's file asks for bicubic.

Shapes: N rows, B rows of a batch, C channels, H height, W width, S side of the model's input.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from fedelta.errors import DataError, ModelError
from fedelta.modalities.audio import Recordings
from fedelta.modalities.base import Certainty, Column, ColumnRule, ExampleError, Inputs, Modality, ModelFiles
from fedelta.modalities.pixels import ImageShape, decode, measure
from fedelta.modalities.settings import Preparation
from fedelta.modalities.stores import Encoded, examined, in_chunks, read_examples, refuse_rows, stored

if TYPE_CHECKING:
    from fedelta.modalities.base import Example


@dataclass(frozen=True)
class Images:
    """Images to `pixel_values`: scaled to 0..1, resized, normalised.

    Args:
        image_size: side S of the square the model takes, in pixels. Other aspect ratios are stretched.
        mean: one value per channel, on the 0..1 scale.
        std: one value per channel, on the 0..1 scale, > 0.
        num_channels: channels the model takes.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_channels: int = 3

    name: ClassVar = "image"
    singular: ClassVar = "image"
    plural: ClassVar = "images"
    columns: ClassVar = ColumnRule({"image": Certainty.SURE, "array": Certainty.LIKELY, "bytes": Certainty.LIKELY})
    suffixes: ClassVar = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
    is_augmented: ClassVar = True
    settings: ClassVar[frozenset[str]] = frozenset()
    card_note: ClassVar = ""

    @classmethod
    def for_model(cls, model: ModelFiles) -> Images:
        """As `preprocessor_config.json` says; a checkpoint without one was trained as ViT was."""
        content = {} if model.place is None else _read_preprocessor(model.place)
        return cls.from_preprocessor(content, model.image_size, model.num_channels)

    @classmethod
    def from_preprocessor(cls, config: Mapping[str, object], image_size: int, num_channels: int) -> Images:
        """Images as a checkpoint was trained to take them.

        Args:
            config: content of `preprocessor_config.json`; empty where the checkpoint has none. Read are
                `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean` and `image_std`; a missing key has
                the value that transformers' `ViTImageProcessor` gives it.
            image_size: side of the model's input in pixels; the size in `config` is not used.
            num_channels: channels of the model's input.

        Raises:
            ModelError: `config` holds values that are no channel statistics.
        """
        # ViTImageProcessor: rescale_factor 1/255, IMAGENET_STANDARD_MEAN and IMAGENET_STANDARD_STD.
        factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
        mean, std = config.get("image_mean") or [0.5] * 3, config.get("image_std") or [0.5] * 3
        if not config.get("do_normalize", True):
            mean, std = [0.0], [1.0]
        if not isinstance(factor, int | float) or factor <= 0:
            raise ModelError(f"`preprocessor_config.json`: rescale_factor is {factor!r}, expected a number > 0")
        # Images are divided by 255 here: (x * factor - mean) / std = (x / 255 - mean / scale) / (std / scale).
        scale = factor * 255
        means = _per_channel("image_mean", mean, num_channels)
        stds = _per_channel("image_std", std, num_channels)
        if min(stds) <= 0:
            raise ModelError(f"`preprocessor_config.json`: image_std is {std!r}, expected values > 0")
        return cls(
            image_size=image_size,
            mean=tuple(value / scale for value in means),
            std=tuple(value / scale for value in stds),
            num_channels=num_channels,
        )

    def prepared(self, preparation: Preparation) -> Modality:
        """The same, or recordings where the settings of these are given."""
        if preparation.audio is None:
            return self
        return Recordings(preparation.audio, self.image_size, self.num_channels)

    @property
    def preparation(self) -> Preparation:
        """Nothing: the model brings all of it along."""
        return Preparation()

    @property
    def description(self) -> Mapping[str, object]:
        """Images become `(pixels * scale - mean) / std`."""
        return {"kind": self.name, "scale": 1 / 255} | asdict(self)

    @property
    def dynamic_axes(self) -> Mapping[int, str]:
        """The batch."""
        return {0: "batch"}

    @property
    def black(self) -> tuple[float, ...]:
        """What a black pixel is in the model's input, one value per channel."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))

    def transform(self, raw: Tensor) -> dict[str, Tensor]:
        """The model's arguments for uint8 images.

        Args:
            raw: uint8 of shape [B, C, H, W]; C is `num_channels`, or 1 (repeated), or anything (averaged)
                for a model of one channel.

        Returns:
            `pixel_values`: float32 of shape [B, num_channels, image_size, image_size].

        Raises:
            DataError: the channels of images and model do not go together.
        """
        pixels = self._match_channels(raw.float() / 255)
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            pixels = interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return {"pixel_values": (pixels - mean) / std}

    def store(self, column: Column, max_memory_mib: int) -> Inputs:
        """The images of a column, in memory where they fit.

        Images that all have one size no larger than the model's are kept at that size and resized at every fetch;
        otherwise each is resized to the model's size when it is read.
        """
        shapes, problems = examined(column, measure)
        shape = _common_shape(shapes, self.image_size)
        read = partial(_decoded, shape=shape)
        num_bytes = len(column) * shape.channels * shape.height * shape.width
        if not shapes or num_bytes > max_memory_mib * 2**20:
            refuse_rows(column, problems)
            return Encoded(column, read, self)
        raw = torch.empty((len(column), shape.channels, shape.height, shape.width), dtype=torch.uint8)
        return stored(column, read, raw, self, problems)

    def examples(self, examples: Sequence[Example], batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Inputs of paths, Pillow images, or uint8 tensors [C, H, W]."""
        pixels = read_examples(
            self.plural,
            examples,
            lambda image: self.transform(_pixels(image, self.image_size)[None])["pixel_values"],
            "give image files that Pillow can open, Pillow images, or uint8 tensors [C, H, W].",
        )
        return ({"pixel_values": torch.cat(list(chunk))} for chunk in in_chunks(pixels, batch_size))

    def export_inputs(self, num: int, length: int, generator: Generator) -> dict[str, Tensor]:
        """`num` images of noise."""
        shape = (num, self.num_channels, self.image_size, self.image_size)
        return {"pixel_values": torch.randn(*shape, generator=generator)}

    def costliest(self) -> dict[str, Tensor]:
        """A black image."""
        return self.transform(torch.zeros(1, self.num_channels, self.image_size, self.image_size, dtype=torch.uint8))

    def _match_channels(self, pixels: Tensor) -> Tensor:
        num_channels = pixels.shape[1]
        if num_channels == self.num_channels:
            return pixels
        if num_channels == 1:
            return pixels.expand(-1, self.num_channels, -1, -1)
        if self.num_channels == 1:
            return pixels.mean(1, keepdim=True)
        raise DataError(f"images have {num_channels} channels, the model takes {self.num_channels}")


def _read_preprocessor(place: str) -> dict[str, object]:
    """`preprocessor_config.json` of a local directory or the hub, {} without one."""
    from transformers.utils.hub import cached_file

    path = cached_file(place, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    try:
        return {} if path is None else dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path} holds no JSON object: {error}") from error


def _per_channel(key: str, values: object, num_channels: int) -> tuple[float, ...]:
    """`values` with one entry per channel; one entry is repeated, several are averaged for one channel."""
    listed = values if isinstance(values, list | tuple) else [values]
    numbers = [float(value) for value in listed if isinstance(value, int | float)]
    if len(numbers) == len(listed):
        if len(numbers) == num_channels:
            return tuple(numbers)
        if len(numbers) == 1:
            return (numbers[0],) * num_channels
        if num_channels == 1:
            return (sum(numbers) / len(numbers),)
    raise ModelError(
        f"`preprocessor_config.json`: {key} is {values!r}, expected {num_channels} numbers, one per channel"
    )


def _common_shape(shapes: Set[ImageShape], image_size: int) -> ImageShape:
    """The shape in which to keep the images: their own if it is one and no larger than the model's."""
    channels = max((shape.channels for shape in shapes), default=1)
    sizes = {(shape.height, shape.width) for shape in shapes}
    height, width = sizes.pop() if len(sizes) == 1 else (image_size, image_size)
    if max(height, width) > image_size:
        height = width = image_size
    return ImageShape(channels, height, width)


def _decoded(value: object, shape: ImageShape) -> Tensor:
    return torch.from_numpy(decode(value, shape))


def _pixels(image: Example, image_size: int) -> Tensor:
    """uint8 [C, H, W], no larger than the model's input: decoded as the images of a data set are."""
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] not in {1, 3} or image.numel() == 0:
            raise ExampleError(f"a {image.dtype} tensor of shape {tuple(image.shape)}, expected uint8 [1 or 3, H, W]")
        return image
    encoded = _encoded(image)
    shape = measure(encoded)
    if max(shape.height, shape.width) > image_size:
        shape = ImageShape(shape.channels, image_size, image_size)
    return _decoded(encoded, shape)


def _encoded(image: Example) -> bytes:
    from PIL import Image, ImageOps

    if isinstance(image, str | Path):
        try:
            return Path(image).expanduser().read_bytes()
        except OSError as error:
            raise ExampleError(error.strerror or str(error)) from error
    if not isinstance(image, Image.Image):
        raise ExampleError(f"no image but {type(image).__name__}")
    buffer = io.BytesIO()
    # TIFF keeps every mode of Pillow as it is; turned first, because it would turn by the camera's note on its own.
    ImageOps.exif_transpose(image).save(buffer, "TIFF")
    return buffer.getvalue()
