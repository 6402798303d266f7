"""Recordings: log-mel spectrograms as `pixel_values` for an image classifier.

The raw form of a recording is its spectrogram, kept in memory or computed at every fetch.

Shapes: N rows, B recordings, M mel bins, F frames, C channels, S side of the model's input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from fedelta.modalities.base import Certainty, Column, ColumnRule, ExampleError, Inputs, ModelFiles
from fedelta.modalities.settings import AudioSettings, Preparation
from fedelta.modalities.spectrograms import log_mel, needed_seconds, resample
from fedelta.modalities.stores import Encoded, in_chunks, read_examples, refuse_rows, scan_rows, store_rows
from fedelta.modalities.waveforms import check_audio, check_rate, check_scale, decode_audio, one_channel

if TYPE_CHECKING:
    from fedelta.modalities.base import Example

_BYTES_PER_VALUE = 2  # float16


@dataclass(frozen=True)
class Recordings:
    """Turns recordings into `pixel_values`: `spectrogram` runs once per recording, `transform` once per batch.

    Args:
        audio: section `[data.audio]`.
        image_size: side S of the model's square input, in pixels.
        num_channels: channels of the model's input; all get the same values.
    """

    audio: AudioSettings
    image_size: int
    num_channels: int = 3

    name: ClassVar = "audio"
    singular: ClassVar = "recording"
    plural: ClassVar = "recordings"
    columns: ClassVar = ColumnRule({"audio": Certainty.SURE})
    suffixes: ClassVar = frozenset({".wav", ".flac", ".ogg", ".mp3"})
    is_augmented: ClassVar = False
    settings: ClassVar = frozenset({"audio"})

    @classmethod
    def for_model(cls, model: ModelFiles) -> Recordings:
        """Recordings for a model that takes images; its image statistics are not used."""
        return cls(AudioSettings(), model.image_size, model.num_channels)

    @classmethod
    def card_note(cls, preparation: Preparation) -> str:  # noqa: ARG003 part of the protocol
        """A note that the inputs are spectrograms, which other programs do not compute."""
        return (
            "Its inputs are log-mel spectrograms of recordings, as images. fedelta computes them with the settings\n"
            "under `audio` in `fedelta.json`."
        )

    def prepared(self, preparation: Preparation) -> Recordings:
        """A copy with the audio settings of `preparation`, if it has any."""
        return self if preparation.audio is None else replace(self, audio=preparation.audio)

    def fitted(self, column: Column) -> Recordings:
        """`self`: nothing depends on the training recordings."""
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def preparation(self) -> Preparation:
        """The settings of the spectrogram."""
        return Preparation(audio=self.audio)

    @property
    def description(self) -> Mapping[str, object]:
        """The settings of the spectrogram, and the size of the model's input."""
        return {
            "kind": self.name,
            "image_size": self.image_size,
            "num_channels": self.num_channels,
            "spectrogram": self.audio.model_dump(mode="json"),
        }

    @property
    def dynamic_axes(self) -> Mapping[int, str]:
        """The batch."""
        return {0: "batch"}

    @property
    def black(self) -> tuple[float, ...]:
        """0, which stands for the mean of the log-mel values."""
        return (0.0,)

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and columns of `spectrogram`: [M, F] if it fits into the model's input, else [S, S]."""
        shape = (self.audio.num_mel_bins, self.audio.num_frames)
        return (self.image_size, self.image_size) if max(shape) > self.image_size else shape

    def spectrogram(self, waveform: NDArray[np.float32], sample_rate: int) -> Tensor:
        """The log-mel spectrogram of a recording, float16 of `stored_shape`, low frequencies first.

        Args:
            waveform: one channel, at least one sample, in -1..1.
            sample_rate: of `waveform`, in Hz.
        """
        values = log_mel(resample(waveform, sample_rate, self.audio.sample_rate), self.audio)
        # Rounded here rather than in the store, so that training and prediction get the same values.
        return _resized(values[None, None], self.stored_shape)[0, 0].half()

    def transform(self, raw: Tensor) -> dict[str, Tensor]:
        """The model's inputs for spectrograms.

        Args:
            raw: of shape [B, *stored_shape].

        Returns:
            `pixel_values`: float32 of shape [B, C, S, S].
        """
        pixels = _resized(raw.float().unsqueeze(1), (self.image_size, self.image_size))
        return {"pixel_values": pixels.expand(-1, self.num_channels, -1, -1)}

    def store(self, column: Column, max_memory_mib: int) -> Inputs:
        """The recordings of a column, as spectrograms in memory if they fit."""
        if len(column) * math.prod(self.stored_shape) * _BYTES_PER_VALUE > max_memory_mib * 2**20:
            refuse_rows(column, scan_rows(column, check_audio)[1])
            return Encoded(column, self._read, self)
        raw = torch.empty((len(column), *self.stored_shape), dtype=torch.float16)
        return store_rows(column, self._read, raw, self, {})

    def examples(self, examples: Sequence[Example], batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Inputs of paths, or of pairs of a tensor and a sample rate in Hz."""
        spectrograms = read_examples(
            self.plural,
            examples,
            lambda recording: self.spectrogram(*_waveform(recording, needed_seconds(self.audio))),
            "give WAV, FLAC, OGG or MP3 files, or pairs of a float tensor [samples] or [channels, samples] and its "
            "sample rate in Hz.",
        )
        return (self.transform(torch.stack(list(chunk))) for chunk in in_chunks(spectrograms, batch_size))

    def export_inputs(self, num: int, length: int, generator: Generator) -> dict[str, Tensor]:
        """`num` spectrograms of noise."""
        shape = (num, self.num_channels, self.image_size, self.image_size)
        return {"pixel_values": torch.randn(*shape, generator=generator)}

    def costliest(self) -> dict[str, Tensor]:
        """A spectrogram of zeros."""
        return self.transform(torch.zeros(1, *self.stored_shape))

    def _read(self, value: object) -> Tensor:
        return self.spectrogram(*decode_audio(value, needed_seconds(self.audio)))


def _waveform(recording: Example, max_seconds: float) -> tuple[NDArray[np.float32], int]:
    """One channel of float32, and its sample rate in Hz."""
    if isinstance(recording, str | Path):
        return decode_audio(str(recording), max_seconds)
    if not isinstance(recording, tuple) or len(recording) != 2:
        raise ExampleError(f"not a recording but {type(recording).__name__}")
    samples, sample_rate = recording
    if not isinstance(samples, Tensor):
        raise ExampleError(f"not a tensor but {type(samples).__name__}")
    if not samples.is_floating_point() or samples.dim() not in {1, 2}:
        shape = f"a {samples.dtype} tensor of shape {tuple(samples.shape)}"
        raise ExampleError(f"{shape}, expected a float tensor [samples] or [channels, samples]")
    check_rate(sample_rate)
    if samples.numel():
        check_scale(float(samples.abs().max()))
    return one_channel(np.atleast_2d(samples.detach().cpu().float().numpy())), sample_rate


def _resized(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """`values` [B, 1, H, W] resized to [B, 1, *shape]."""
    if values.shape[-2:] == shape:
        return values
    return interpolate(values, shape, mode="bilinear", antialias=True, align_corners=False)
