"""Images: `pixel_values`, without augmentation.

Pixels are prepared by the checkpoint's image processor (`processor.py`), or stretched to the model's square if the
configuration asks for that or the checkpoint has no processor. The inputs of an image are the same in every epoch, so
that the engine can cache the outputs of a frozen prefix.

Differs from the image processors of transformers in one point: where the processor is a bilinear resize to a square,
images that are stored at their original size are not rounded to whole gray levels after the resize.

Shapes: N rows, B rows of a batch, C channels, H height, W width, S side of the model's input.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from fedelta.errors import DataError, ModelError
from fedelta.modalities.audio import Recordings
from fedelta.modalities.base import Certainty, Column, ColumnRule, ExampleError, Inputs, Modality, ModelFiles
from fedelta.modalities.image_columns import find_value_range, is_flat, kept_shape, warn_of_flat_images, warn_of_frames
from fedelta.modalities.pixels import ImageShape, decode_full_size, decode_image, read_header
from fedelta.modalities.processor import STRETCH, Processor, UnfollowableError, follow, read_preprocessor
from fedelta.modalities.settings import Preparation, Resize
from fedelta.modalities.statistics import Statistics, stretching
from fedelta.modalities.stores import Encoded, in_chunks, read_examples, refuse_rows, scan_rows, store_rows
from fedelta.modalities.value_range import EIGHT_BIT, ValueRange

if TYPE_CHECKING:
    from fedelta.modalities.base import Example

logger = logging.getLogger("fedelta")
_FOLLOWED: Resize = "checkpoint"
_STRETCHED: Resize = "stretch"


@dataclass(frozen=True)
class Images:
    """Turns images into `pixel_values`: resized to the model's size, scaled to 0..1, normalised.

    Args:
        image_size: side S of the model's square input, in pixels.
        mean: one value per channel, on the 0..1 scale.
        std: one value per channel, on the 0..1 scale, > 0.
        num_channels: channels of the model's input.
        processor: the checkpoint's image processor at the model's size; None: images are stretched to the square.
        value_range: for images of more than 8 bits; None until the training data set it, which means 0..255.
        refusal: why the checkpoint's processor cannot be used; "" if it can, or if there is none.
        native: side of the processor's output before it was scaled to the model; for messages only.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_channels: int = 3
    processor: Processor | None = None
    value_range: ValueRange | None = None
    refusal: str = ""
    native: int | None = field(default=None, compare=False)

    name: ClassVar = "image"
    singular: ClassVar = "image"
    plural: ClassVar = "images"
    columns: ClassVar = ColumnRule({"image": Certainty.SURE, "array": Certainty.LIKELY, "bytes": Certainty.LIKELY})
    suffixes: ClassVar = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
    is_augmented: ClassVar = True
    settings: ClassVar[frozenset[str]] = frozenset({"resize", "value_range"})

    @classmethod
    def for_model(cls, model: ModelFiles) -> Images:
        """Images prepared according to `preprocessor_config.json`; a checkpoint without one is treated like ViT."""
        content = {} if model.place is None else read_preprocessor(model.place)
        family = str(getattr(model.config, "model_type", ""))
        if content and not model.is_size_known:
            try:
                native = follow(content, family, None).native
            except UnfollowableError:
                native = model.image_size
            return cls.from_preprocessor(content, native, model.num_channels, family)
        return cls.from_preprocessor(content, model.image_size, model.num_channels, family)

    @classmethod
    def from_preprocessor(
        cls, config: Mapping[str, object], image_size: int, num_channels: int, family: str = ""
    ) -> Images:
        """Images prepared as for the training of a checkpoint.

        Args:
            config: content of `preprocessor_config.json`; empty if the checkpoint has none. Its sizes are scaled in
                proportion to `image_size`.
            image_size: side of the model's input in pixels.
            num_channels: channels of the model's input.
            family: `model_type`; selects the processor if `config` does not name one.

        Raises:
            ModelError: mean or deviation in `config` are not valid channel statistics.
        """
        plain = cls(image_size, *Statistics.of(config, num_channels), num_channels)
        if not config:
            return plain
        try:
            followed = follow(config, family, image_size)
        except UnfollowableError as error:
            return replace(plain, refusal=str(error))
        statistics = Statistics.of(followed.processor.fields, num_channels)
        mean, std = statistics.unless_other(followed.mean, followed.std)
        return replace(plain, mean=mean, std=std, processor=followed.processor, native=followed.native)

    @classmethod
    def card_note(cls, preparation: Preparation) -> str:
        """How images were resized, and where other programs find the settings."""
        if preparation.processor is None:
            return ""
        lines = ["Images are prepared according to `preprocessor_config.json` beside this card:"]
        if preparation.resize == _STRETCHED:
            lines += ["they are resized to the model's square without keeping their aspect ratio (bilinear)."]
        else:
            kind = preparation.processor.get("image_processor_type", "image processor")
            lines += [f"by the base model's `{kind}`."]
        low, high = preparation.value_range or (EIGHT_BIT.low, EIGHT_BIT.high)
        if ValueRange(low, high) != EIGHT_BIT:
            lines += [f"Before that, {low:g} becomes black and {high:g} becomes white: the range of the training data."]
        return "\n".join(lines)

    def prepared(self, preparation: Preparation) -> Modality:
        """A copy that follows `preparation`; `Recordings` if it has audio settings."""
        if preparation.audio is not None:
            return Recordings(preparation.audio, self.image_size, self.num_channels)
        images = self
        if preparation.processor is not None:
            images = Images.from_preprocessor(preparation.processor, self.image_size, self.num_channels)
            images = replace(images, value_range=self.value_range, native=self.native)
        if preparation.resize == _STRETCHED:
            images = replace(images, processor=None, refusal="")
        elif preparation.resize == _FOLLOWED:
            images._check_followed()
        if preparation.value_range is not None:
            images = replace(images, value_range=ValueRange(*preparation.value_range))
        return images

    def fitted(self, column: Column) -> Images:
        """A copy with the value range of the training images of more than 8 bits."""
        return self if self.value_range is not None else replace(self, value_range=find_value_range(column))

    @property
    def notes(self) -> tuple[str, ...]:
        """How images are resized, and their value range if it is unusual."""
        side = self.image_size
        if self.processor is None:
            notes = [f"images are stretched to {side} x {side} pixels, without keeping their aspect ratio"]
        else:
            notes = [f"images are prepared by the checkpoint's {self.processor.fields['image_processor_type']}"]
            if self.native not in {None, side}:
                notes[0] += f", its sizes scaled from {self.native} to {side} pixels"
        if self.value_range not in {None, EIGHT_BIT}:
            value_range = self.value_range or EIGHT_BIT
            black, white = f"{value_range.low:g}", f"{value_range.high:g}"
            notes.append(f"in arrays and images of more than 8 bits {black} becomes black and {white} white")
        return tuple(notes)

    @property
    def preparation(self) -> Preparation:
        """The preparation, in terms of the stock image processor that has the same effect."""
        if self.processor is not None:
            resize, fields = _FOLLOWED, self.processor.fields
        else:
            resize, fields = _STRETCHED, stretching(self.image_size, self.mean, self.std)
        limits = None if self.value_range is None else (self.value_range.low, self.value_range.high)
        return Preparation(resize=resize, processor=fields, value_range=limits)

    @property
    def description(self) -> Mapping[str, object]:
        """Settings for `(pixels * scale - mean) / std`, after resizing according to `processor`."""
        preparation = self.preparation
        return {
            "kind": self.name,
            "scale": 1 / 255,
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
            "num_channels": self.num_channels,
            "resize": preparation.resize,
            "processor": preparation.processor,
            "value_range": preparation.value_range,
        }

    @property
    def dynamic_axes(self) -> Mapping[int, str]:
        """The batch."""
        return {0: "batch"}

    @property
    def black(self) -> tuple[float, ...]:
        """The input value of a black pixel, one per channel."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))

    def transform(self, raw: Tensor) -> dict[str, Tensor]:
        """The model's inputs for uint8 images.

        Args:
            raw: uint8 of shape [B, C, H, W]; C is `num_channels`, or 1 (repeated), or any number if the model takes
                one channel (averaged).

        Returns:
            `pixel_values`: float32 of shape [B, num_channels, image_size, image_size].

        Raises:
            DataError: the numbers of channels of images and model do not match.
        """
        if self._processes:
            raw = torch.stack([self._processed(image) for image in raw])
        pixels = self._match_channels(raw.float() / 255)
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            pixels = interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return {"pixel_values": (pixels - mean) / std}

    def store(self, column: Column, max_memory_mib: int) -> Inputs:
        """The images of a column, in memory if they fit.

        Images that all share one size, no larger than the model's, are stored at that size and prepared at every fetch.
        Otherwise each image is prepared once, when it is read.
        """
        self._check_followed()
        fitted = self.fitted(column)
        headers, problems = scan_rows(column, read_header)
        warn_of_frames(column, headers)
        shape, is_own = kept_shape(headers, self.image_size)
        is_ready = self._processes and not is_own
        read = partial(fitted._ready, channels=shape.channels) if is_ready else partial(fitted._decoded, shape=shape)
        modality = replace(fitted, processor=None) if is_ready else fitted
        num_bytes = len(column) * shape.channels * shape.height * shape.width
        if not headers or num_bytes > max_memory_mib * 2**20:
            refuse_rows(column, problems)
            return warn_of_flat_images(column, Encoded(column, read, modality))
        raw = torch.empty((len(column), shape.channels, shape.height, shape.width), dtype=torch.uint8)
        return warn_of_flat_images(column, store_rows(column, read, raw, modality, problems))

    def examples(self, examples: Sequence[Example], batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Inputs of paths, Pillow images, or uint8 tensors [C, H, W]."""
        self._check_followed()
        pixels = read_examples(
            self.plural,
            examples,
            self._inputs,
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

    @property
    def _processes(self) -> bool:
        """Whether the processor does more than a bilinear resize."""
        return self.processor is not None and not self.processor.is_stretch

    @property
    def _on_white(self) -> bool:
        return self.processor is not None and self.processor.on_white

    def _check_followed(self) -> None:
        if self.refusal:
            raise ModelError(f"the checkpoint's image preparation cannot be used: {self.refusal}.", hint=STRETCH)

    def _inputs(self, example: Example) -> Tensor:
        """`pixel_values` [1, C, S, S] of a single image, prepared as `store` does."""
        if isinstance(example, Tensor):
            if example.dtype != torch.uint8 or example.dim() != 3 or example.shape[0] not in {1, 3}:
                problem = f"a {example.dtype} tensor of shape {tuple(example.shape)}, expected uint8 [1 or 3, H, W]"
                raise ExampleError(problem)
            if example.numel() == 0:
                raise ExampleError(f"a tensor of shape {tuple(example.shape)}, expected at least one pixel")
            return self.transform(example[None])["pixel_values"]
        value = Path(example) if isinstance(example, str) else example
        shape, _ = kept_shape([read_header(value)], self.image_size)
        if self._processes:
            raw, modality = self._ready(value, channels=shape.channels), replace(self, processor=None)
        else:
            raw, modality = self._decoded(value, shape=shape), self
        if is_flat(raw):
            name = repr(str(example)) if isinstance(example, str | Path) else "an image"
            logger.warning("the pixels of %s are nearly all equal: check its range of values.", name)
        return modality.transform(raw[None])["pixel_values"]

    def _decoded(self, value: object, *, shape: ImageShape) -> Tensor:
        """The pixels of an image, uint8 of `shape`."""
        return torch.from_numpy(decode_image(value, shape, self.value_range or EIGHT_BIT, on_white=self._on_white))

    def _ready(self, value: object, *, channels: int) -> Tensor:
        """The processor's output for an image, uint8 [channels, S, S]."""
        value_range = self.value_range or EIGHT_BIT
        pixels = decode_full_size(value, channels, value_range, self.image_size, on_white=self._on_white)
        return self._processed(torch.from_numpy(pixels))

    def _processed(self, image: Tensor) -> Tensor:
        """The processor's output for uint8 [C, H, W], uint8 [C, S, S]; it treats all of its three channels equally."""
        if self.processor is None or image.shape[0] not in {1, 3}:
            return image
        pixels = self.processor.pixels(image.expand(3, -1, -1).numpy())
        return torch.from_numpy(np.ascontiguousarray(pixels[: image.shape[0]]))

    def _match_channels(self, pixels: Tensor) -> Tensor:
        num_channels = pixels.shape[1]
        if num_channels == self.num_channels:
            return pixels
        if num_channels == 1:
            return pixels.expand(-1, self.num_channels, -1, -1)
        if self.num_channels == 1:
            return pixels.mean(1, keepdim=True)
        raise DataError(f"images have {num_channels} channels, but the model takes {self.num_channels}")
