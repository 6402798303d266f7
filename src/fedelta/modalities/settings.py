"""What a configuration says of how examples become model inputs."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Literal

from pydantic import Field, FiniteFloat

from fedelta.settings import Settings

# "checkpoint": as the checkpoint's own image processor does it. "stretch": to the model's square, whatever the aspect
# ratio, bilinear.
Resize = Literal["checkpoint", "stretch"]


class AudioSettings(Settings):
    """How recordings become spectrograms: section `[data.audio]`.

    Args:
        sample_rate: in Hz; recordings are resampled to it. The spectrogram ends at half of it.
        num_mel_bins: rows of the spectrogram.
        num_frames: columns of the spectrogram, 10 ms each; a longer recording is cut at the end, a shorter one
            filled up with zeros.
        mean: of the log-mel values; subtracted.
        std: of the log-mel values, > 0; the result is divided by twice of it.
    """

    # Below 1 kHz nothing of speech is left, 192 kHz is what studios record at; 100,000 frames are a quarter of an hour.
    sample_rate: int = Field(default=16_000, ge=1000, le=192_000)  # AST
    num_mel_bins: int = Field(default=128, ge=1, le=1024)  # AST
    num_frames: int = Field(
        default=128, ge=1, le=100_000
    )  # AST on Speech Commands: its second is 98 frames, padded to 128
    mean: float = -4.2677393  # AST: of AudioSet
    std: float = Field(default=4.5689974, gt=0)  # AST: of AudioSet


class Preparation(Settings):
    """What is said of the way from examples to inputs, beside what the model brings along; None says nothing.

    Args:
        max_length: most tokens of a text.
        audio: how recordings become spectrograms; where it is given, a model that takes images takes recordings.
        resize: how images get the model's size.
        processor: of images, what `preprocessor_config.json` says of them; stands for the checkpoint's own.
        value_range: of images of more than 8 bits, what becomes black and what becomes white.
    """

    max_length: int | None = Field(default=None, ge=1)
    audio: AudioSettings | None = None
    resize: Resize | None = None
    processor: dict[str, Any] | None = None  # Any: JSON values
    value_range: tuple[FiniteFloat, FiniteFloat] | None = None

    def only(self, keys: Set[str]) -> Preparation:
        """What is said under these keys, and nothing else."""
        return self.model_copy(update=dict.fromkeys(type(self).model_fields.keys() - keys))
