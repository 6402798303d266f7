"""Settings that control how examples become model inputs."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Literal

from pydantic import Field, FiniteFloat

from fedelta.settings import Settings

# "checkpoint": by the checkpoint's image processor. "stretch": bilinear to the model's square, without keeping the
# aspect ratio.
Resize = Literal["checkpoint", "stretch"]


class AudioSettings(Settings):
    """How recordings become spectrograms: section `[data.audio]`.

    Args:
        sample_rate: in Hz; recordings are resampled to it. The spectrogram ends at half of it.
        num_mel_bins: rows of the spectrogram.
        num_frames: columns of the spectrogram, 10 ms each; a longer recording is cut at the end, a shorter one is
            padded with zeros.
        mean: of the log-mel values; subtracted.
        std: of the log-mel values, > 0; the result is divided by twice this value.
    """

    # Below 1 kHz speech is lost, studios record at up to 192 kHz; 100,000 frames are about 17 minutes.

    sample_rate: int = Field(default=16_000, ge=1000, le=192_000)  # AST
    num_mel_bins: int = Field(default=128, ge=1, le=1024)  # AST
    num_frames: int = Field(
        default=128, ge=1, le=100_000
    )  # AST on Speech Commands: recordings of 1 s are 98 frames, padded to 128
    mean: float = -4.2677393  # AST: of AudioSet
    std: float = Field(default=4.5689974, gt=0)  # AST: of AudioSet


class DialogueSettings(Settings):
    """What a language model is trained on.

    Args:
        train_on: "response" for the tokens of the assistant's turns, "all" for every token.
        template: a chat template in Jinja; "auto" for the tokenizer's own, or the plain one if it has none; "plain" for
            the plain one.
    """

    train_on: Literal["response", "all"] = "response"
    template: str = Field(default="auto", min_length=1)


class Preparation(Settings):
    """How examples become inputs, where that differs from the model's default; None keeps the default.

    Args:
        max_length: maximum number of tokens of a text.
        audio: how recordings become spectrograms; if set, a model that takes images is fed recordings.
        resize: how images are resized to the model's input.
        processor: content of `preprocessor_config.json`; replaces the checkpoint's.
        value_range: values that become black and white in images of more than 8 bits.
        template: the chat template that turns a dialogue into a text, in Jinja.
    """

    max_length: int | None = Field(default=None, ge=1)
    audio: AudioSettings | None = None
    resize: Resize | None = None
    processor: dict[str, Any] | None = None  # Any: JSON values
    value_range: tuple[FiniteFloat, FiniteFloat] | None = None
    template: str | None = None

    def only(self, keys: Set[str]) -> Preparation:
        """A copy that keeps these keys and sets all others to None."""
        return self.model_copy(update=dict.fromkeys(type(self).model_fields.keys() - keys))
