"""Images: `pixel_values`, without augmentation.

Pixels are prepared as the checkpoint's own image processor does it (`processor.py`), or stretched to the model's square
where the configuration says so or the checkpoint has no processor. The output for an image is the same in every epoch,
which is what lets the engine keep the outputs of a frozen prefix.

Differs from the image processors of transformers in one point: where all that they do is a bilinear resize to a square,
images that are kept at a size of their own are not rounded to whole gray levels again after it.

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
from fedelta.modalities.gray_range import EIGHT_BIT, Levels
from fedelta.modalities.pixels import ImageShape, decode, decode_whole, read_header
from fedelta.modalities.processor import STRETCH, Processor, UnfollowableError, follow, read_preprocessor
from fedelta.modalities.rows import find_levels, is_flat, kept_shape, say_flat, say_frames
from fedelta.modalities.settings import Preparation, Resize
from fedelta.modalities.statistics import Statistics, stretching
from fedelta.modalities.stores import Encoded, examined, in_chunks, read_examples, refuse_rows, stored

if TYPE_CHECKING:
    from fedelta.modalities.base import Example

logger = logging.getLogger("fedelta")
_FOLLOWED: Resize = "checkpoint"
_STRETCHED: Resize = "stretch"


@dataclass(frozen=True)
class Images:
    """Images to `pixel_values`: made the model's size, scaled to 0..1, normalised.

    Args:
        image_size: side S of the square the model takes, in pixels.
        mean: one value per channel, on the 0..1 scale.
        std: one value per channel, on the 0..1 scale, > 0.
        num_channels: channels the model takes.
        processor: of the checkpoint, at the model's size. None: images are stretched, whatever their aspect ratio.
        levels: of images of more than 8 bits; None before the training data were looked at, then 0..255 counts.
        refusal: why the checkpoint's processor cannot be followed; "" where it can, or where there is none.
        native: side of what that processor makes by its own file; of no meaning for the inputs.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_channels: int = 3
    processor: Processor | None = None
    levels: Levels | None = None
    refusal: str = ""
    native: int | None = field(default=None, compare=False)

    name: ClassVar = "image"
    singular: ClassVar = "image"
    plural: ClassVar = "images"
    columns: ClassVar = ColumnRule({"image": Certainty.SURE, "array": Certainty.LIKELY, "bytes": Certainty.LIKELY})
    suffixes: ClassVar = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
    is_augmented: ClassVar = True
    settings: ClassVar[frozenset[str]] = frozenset({"resize"})

    @classmethod
    def for_model(cls, model: ModelFiles) -> Images:
        """As `preprocessor_config.json` says; a checkpoint without one was trained as ViT was."""
        content = {} if model.place is None else read_preprocessor(model.place)
        family = str(getattr(model.config, "model_type", ""))
        if content and not model.is_size_known:
            try:
                own = follow(content, family, None).native
            except UnfollowableError:
                own = model.image_size
            return cls.from_preprocessor(content, own, model.num_channels, family)
        return cls.from_preprocessor(content, model.image_size, model.num_channels, family)

    @classmethod
    def from_preprocessor(
        cls, config: Mapping[str, object], image_size: int, num_channels: int, family: str = ""
    ) -> Images:
        """Images as a checkpoint was trained to take them.

        Args:
            config: content of `preprocessor_config.json`; empty where the checkpoint has none. Its sizes are scaled in
                proportion to `image_size`.
            image_size: side of the model's input in pixels.
            num_channels: channels of the model's input.
            family: `model_type`, which says what the processor is where `config` does not.

        Raises:
            ModelError: `config` holds values that are no channel statistics.
        """
        plain = cls(image_size, *Statistics.of(config, num_channels), num_channels)
        if not config:
            return plain
        try:
            followed = follow(config, family, image_size)
        except UnfollowableError as error:
            return replace(plain, refusal=str(error))
        named = Statistics.of(followed.processor.fields, num_channels)
        mean, std = named.unless_other(followed.mean, followed.std)
        return replace(plain, mean=mean, std=std, processor=followed.processor, native=followed.native)

    @classmethod
    def card_note(cls, preparation: Preparation) -> str:
        """How images get the model's size, and what other programs need for the same."""
        if preparation.processor is None:
            return ""
        lines = ["Images are prepared as `preprocessor_config.json` beside this card says:"]
        if preparation.resize == _STRETCHED:
            lines += ["they are resized to the model's square without regard to their aspect ratio, bilinear."]
        else:
            kind = preparation.processor.get("image_processor_type", "image processor")
            lines += [f"as the base model's `{kind}` does it."]
        low, high = preparation.value_range or (EIGHT_BIT.low, EIGHT_BIT.high)
        if Levels(low, high) != EIGHT_BIT:
            lines += [f"Before that, {low:g} becomes black and {high:g} becomes white: the range of the training data."]
        return "\n".join(lines)

    def prepared(self, preparation: Preparation) -> Modality:
        """The same with what is given, or recordings where the settings of these are."""
        if preparation.audio is not None:
            return Recordings(preparation.audio, self.image_size, self.num_channels)
        images = self
        if preparation.processor is not None:
            found = Images.from_preprocessor(preparation.processor, self.image_size, self.num_channels)
            images = replace(found, levels=self.levels, native=self.native)
        if preparation.resize == _STRETCHED:
            images = replace(images, processor=None, refusal="")
        elif preparation.resize == _FOLLOWED:
            images._check_followed()
        if preparation.value_range is not None:
            images = replace(images, levels=Levels(*preparation.value_range))
        return images

    def fitted(self, column: Column) -> Images:
        """The same with the range of images of more than 8 bits."""
        return self if self.levels is not None else replace(self, levels=find_levels(column))

    @property
    def notes(self) -> tuple[str, ...]:
        """How images get the model's size, and their range where that is no usual one."""
        side = self.image_size
        if self.processor is None:
            notes = [f"images are stretched to {side} x {side} pixels, whatever their aspect ratio"]
        else:
            notes = [f"images are prepared as by the checkpoint's {self.processor.fields['image_processor_type']}"]
            if self.native not in {None, side}:
                notes[0] += f", its sizes scaled from {self.native} to {side} pixels"
        if self.levels not in {None, EIGHT_BIT}:
            levels = self.levels or EIGHT_BIT
            notes.append(
                f"in arrays and images of more than 8 bits {levels.low:g} becomes black and {levels.high:g} white"
            )
        return tuple(notes)

    @property
    def preparation(self) -> Preparation:
        """What was done, in the words of the stock image processor that does it too."""
        if self.processor is not None:
            resize, fields = _FOLLOWED, self.processor.fields
        else:
            resize, fields = _STRETCHED, stretching(self.image_size, self.mean, self.std)
        levels = None if self.levels is None else (self.levels.low, self.levels.high)
        return Preparation(resize=resize, processor=fields, value_range=levels)

    @property
    def description(self) -> Mapping[str, object]:
        """Images become `(pixels * scale - mean) / std`, after what `processor` says of their size."""
        said = self.preparation
        return {
            "kind": self.name,
            "scale": 1 / 255,
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
            "num_channels": self.num_channels,
            "resize": said.resize,
            "processor": said.processor,
            "value_range": said.value_range,
        }

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
        """The images of a column, in memory where they fit.

        Images that all have one size no larger than the model's are kept at that size and prepared at every fetch;
        otherwise each is prepared when it is read.
        """
        self._check_followed()
        fitted = self.fitted(column)
        headers, problems = examined(column, read_header)
        say_frames(column, headers)
        shape, is_own = kept_shape(headers, self.image_size)
        is_ready = self._processes and not is_own
        read = partial(fitted._ready, channels=shape.channels) if is_ready else partial(fitted._decoded, shape=shape)
        modality = replace(fitted, processor=None) if is_ready else fitted
        num_bytes = len(column) * shape.channels * shape.height * shape.width
        if not headers or num_bytes > max_memory_mib * 2**20:
            refuse_rows(column, problems)
            return say_flat(column, Encoded(column, read, modality))
        raw = torch.empty((len(column), shape.channels, shape.height, shape.width), dtype=torch.uint8)
        return say_flat(column, stored(column, read, raw, modality, problems))

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
        """Whether there is more to do than a bilinear resize."""
        return self.processor is not None and not self.processor.is_stretch

    @property
    def _on_white(self) -> bool:
        return self.processor is not None and self.processor.on_white

    def _check_followed(self) -> None:
        if self.refusal:
            raise ModelError(f"images cannot be prepared as the checkpoint asks for: {self.refusal}.", hint=STRETCH)

    def _inputs(self, example: Example) -> Tensor:
        """`pixel_values` [1, C, S, S] of a single image, by what `store` does."""
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
            logger.warning("%s is nearly of one value: is its range right?", name)
        return modality.transform(raw[None])["pixel_values"]

    def _decoded(self, value: object, *, shape: ImageShape) -> Tensor:
        """uint8 of `shape`."""
        return torch.from_numpy(decode(value, shape, self.levels or EIGHT_BIT, on_white=self._on_white))

    def _ready(self, value: object, *, channels: int) -> Tensor:
        """uint8 [channels, S, S], as the processor makes it."""
        levels = self.levels or EIGHT_BIT
        pixels = decode_whole(value, channels, levels, self.image_size, on_white=self._on_white)
        return self._processed(torch.from_numpy(pixels))

    def _processed(self, image: Tensor) -> Tensor:
        """uint8 [C, S, S] of uint8 [C, H, W]; the processor takes three channels and treats all alike."""
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
        raise DataError(f"images have {num_channels} channels, the model takes {self.num_channels}")
