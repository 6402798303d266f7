"""Mean and deviation of a model's input by channel, as `preprocessor_config.json` names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fedelta.errors import ModelError

_CLOSE = 1e-4  # closer than this, the values of the file and those that its processor shows are the same


class Statistics(NamedTuple):
    """One value per channel each, on the 0..1 scale; deviations are > 0."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, config: Mapping[str, object], num_channels: int) -> Statistics:
        """By the keys of `preprocessor_config.json`.

        Args:
            config: read are `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean` and `image_std`; a missing
                key has the value that transformers' `ViTImageProcessor` gives it.
            num_channels: of the model's input.

        Raises:
            ModelError: these are no channel statistics.
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
        return cls(tuple(value / scale for value in means), tuple(value / scale for value in stds))

    def unless_other(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Statistics:
        """These, which are exact, or what the processor shows where it is something else.

        Args:
            mean: one for each of 3 channels.
            std: likewise.
        """
        if len(self.mean) == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        if len(mean) != len(self.mean):
            return self
        pairs = zip((*self.mean, *self.std), (*mean, *std), strict=True)
        is_same = all(abs(ours - theirs) <= _CLOSE * max(abs(theirs), min(std)) for ours, theirs in pairs)
        return self if is_same else Statistics(mean, std)


def stretching(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, object]:
    """The `preprocessor_config.json` of images that are stretched to a square of `side` pixels."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": len(mean) == 3,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


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
