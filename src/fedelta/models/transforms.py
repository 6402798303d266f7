"""From raw examples to a model's keyword arguments: images to `pixel_values`, texts to `input_ids`.

Only what inference needs, in a few tensor operations and without augmentation: the output for an example is
the same in every epoch, which is what lets the engine keep the outputs of a frozen prefix.

Differs from the image processors of transformers in one point: resizing is always bilinear with
antialiasing, also where a checkpoint's file asks for bicubic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence

from fedelta.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ImageTransform:
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

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The model's arguments for uint8 images.

        Args:
            images: uint8 of shape [B, C, H, W]; C is `num_channels`, or 1 (repeated), or anything (averaged)
                for a model of one channel.

        Returns:
            `pixel_values`: float32 of shape [B, num_channels, image_size, image_size].

        Raises:
            DataError: the channels of images and model do not go together.
        """
        pixels = self._match_channels(images.float() / 255)
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            pixels = interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return {"pixel_values": (pixels - mean) / std}

    @property
    def black(self) -> tuple[float, ...]:
        """What a black pixel is in the model's input, one value per channel."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))

    def _match_channels(self, pixels: Tensor) -> Tensor:
        found = pixels.shape[1]
        if found == self.num_channels:
            return pixels
        if found == 1:
            return pixels.expand(-1, self.num_channels, -1, -1)
        if self.num_channels == 1:
            return pixels.mean(1, keepdim=True)
        raise DataError(f"images have {found} channels, the model takes {self.num_channels}")


def image_transform(config: Mapping[str, object], image_size: int, num_channels: int) -> ImageTransform:
    """The transform that a checkpoint was trained with.

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
    return ImageTransform(
        image_size=image_size,
        mean=tuple(value / scale for value in means),
        std=tuple(value / scale for value in stds),
        num_channels=num_channels,
    )


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


@dataclass(frozen=True)
class TextTransform:
    """Texts to `input_ids` and `attention_mask`, by a checkpoint's own tokenizer.

    Args:
        tokenizer: from transformers; has a padding token.
        max_length: most tokens of a text, special tokens included; what is longer is cut at the end.

    Raises:
        ModelError: the tokenizer has no padding token.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int = 128  # the text classification example of transformers

    def __post_init__(self) -> None:
        if self.tokenizer.pad_token_id is None:
            raise ModelError(
                f"the tokenizer of {self.tokenizer.name_or_path!r} has no padding token, expected one",
                hint="set `pad_token` in the checkpoint's `tokenizer_config.json`, e.g. to its `eos_token`",
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, at most `max_length` and at most what the model has positions for."""
        limit = min(self.max_length, self.tokenizer.model_max_length)
        encoded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=limit,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return [list(ids) for ids in encoded["input_ids"]]

    def collate(self, token_ids: Sequence[Sequence[int] | Tensor]) -> dict[str, Tensor]:
        """The model's arguments for encoded texts.

        Args:
            token_ids: B texts, each the ids of its tokens.

        Returns:
            `input_ids` and `attention_mask` (1 at tokens, 0 at padding), int64 of shape [B, T] with T the
            longest of these texts, padded at the end; `token_type_ids`, all 0, where the tokenizer has them.
        """
        rows = [torch.as_tensor(ids, dtype=torch.int64) for ids in token_ids]
        pad_id = float(self.tokenizer.pad_token_id)
        batch = {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        }
        if "token_type_ids" in self.tokenizer.model_input_names:
            batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        return batch

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`collate` of `encode`."""
        return self.collate(self.encode(texts))
