"""Mean and standard deviation of a model's input images by channel, from `preprocessor_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fedelta.errors import ModelError

_TOLERANCE = 1e-4  # relative difference up to which the file's values and the measured ones count as equal


class Statistics(NamedTuple):
    """Mean and deviation, one value per channel each, on the 0..1 scale; deviations are > 0."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, config: Mapping[str, object], num_channels: int) -> Statistics:
        """The statistics in the content of `preprocessor_config.json`.

        Args:
            config: its keys `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean` and `image_std` are read;
                missing keys get the defaults of `ViTImageProcessor` in transformers.
            num_channels: of the model's input.

        Raises:
            ModelError: the values are not valid channel statistics.
        """
        # ViTImageProcessor: rescale_factor 1/255, IMAGENET_STANDARD_MEAN and IMAGENET_STANDARD_STD.
        factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
        mean, std = config.get("image_mean") or [0.5] * 3, config.get("image_std") or [0.5] * 3
        if not config.get("do_normalize", True):
            mean, std = [0.0], [1.0]
        if not isinstance(factor, int | float) or factor <= 0:
            raise ModelError(f"`preprocessor_config.json`: rescale_factor is {factor!r}, expected a number > 0")
        # fedelta divides pixels by 255: (x * factor - mean) / std = (x / 255 - mean / scale) / (std / scale).
        scale = factor * 255
        means = _per_channel("image_mean", mean, num_channels)
        stds = _per_channel("image_std", std, num_channels)
        if min(stds) <= 0:
            raise ModelError(f"`preprocessor_config.json`: image_std is {std!r}, expected values > 0")
        return cls(tuple(value / scale for value in means), tuple(value / scale for value in stds))

    def unless_other(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Statistics:
        """`self`, whose values are exact, unless the measured values of the processor differ; then those.

        Args:
            mean: measured, one value for each of 3 channels.
            std: measured, one value for each of 3 channels.
        """
        if len(self.mean) == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        if len(mean) != len(self.mean):
            return self
        pairs = zip((*self.mean, *self.std), (*mean, *std), strict=True)
        is_equal = all(abs(exact - measured) <= _TOLERANCE * max(abs(measured), min(std)) for exact, measured in pairs)
        return self if is_equal else Statistics(mean, std)


def stretching(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, object]:
    """A `preprocessor_config.json` that stretches images to a square of `side` pixels."""
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
    """`values` with one entry per channel; a single entry is repeated, several are averaged for a single channel."""
    entries = values if isinstance(values, list | tuple) else [values]
    numbers = [float(value) for value in entries if isinstance(value, int | float)]
    if len(numbers) == len(entries):
        if len(numbers) == num_channels:
            return tuple(numbers)
        if len(numbers) == 1:
            return (numbers[0],) * num_channels
        if num_channels == 1:
            return (sum(numbers) / len(numbers),)
    raise ModelError(
        f"`preprocessor_config.json`: {key} is {values!r}, expected {num_channels} numbers, one per channel"
    )
