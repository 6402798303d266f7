"""From recordings to a model's keyword arguments: log-mel spectrograms as images for an image classifier.

The spectrogram is that of the Audio Spectrogram Transformer (Gong et al. 2021, arXiv 2104.01778) as transformers'
`ASTFeatureExtractor` computes it where torchaudio is absent: Kaldi's filter bank on windows of 25 ms every 10 ms.

Differs from it in two points: window and hop follow `sample_rate` instead of being 400 and 160 samples, and a
recording shorter than one window is filled up with silence instead of being an error.

Shapes: B recordings, M mel bins, F frames, C channels, S side of the model's input.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate, pad

from fedelta.models.transforms import ImageTransform
from fedelta.settings import Settings

_WINDOW_SECONDS, _HOP_SECONDS = 0.025, 0.010  # Kaldi's, and AST's


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


@dataclass(frozen=True)
class AudioTransform:
    """Recordings to `pixel_values`, in two steps: `spectrogram` once for each recording, the call for each batch.

    Args:
        settings: section `[data.audio]`.
        image_size: side S of the square the model takes, in pixels.
        num_channels: channels the model takes; all get the same values.
    """

    settings: AudioSettings
    image_size: int
    num_channels: int = 3

    @property
    def max_seconds(self) -> float:
        """Length of what the spectrogram shows; what comes later in a recording does not matter."""
        return _WINDOW_SECONDS + _HOP_SECONDS * self.settings.num_frames

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and columns of `spectrogram`: [M, F] where the model's input holds that, else [S, S]."""
        shape = (self.settings.num_mel_bins, self.settings.num_frames)
        return (self.image_size, self.image_size) if max(shape) > self.image_size else shape

    def spectrogram(self, waveform: NDArray[np.float32], sample_rate: int) -> Tensor:
        """What is kept of a recording: its log-mel spectrogram, float16 of `stored_shape`, low frequencies first.

        Args:
            waveform: one channel, at least one sample, in -1..1.
            sample_rate: of `waveform`, in Hz.
        """
        found = self.log_mel(resample(waveform, sample_rate, self.settings.sample_rate))
        # Rounded here and not in the store, so that one recording gives the same values in training and prediction.
        return _resized(found[None, None], self.stored_shape)[0, 0].half()

    def log_mel(self, waveform: NDArray[np.float32]) -> Tensor:
        """The normalised log-mel spectrogram, float32 of shape [M, F].

        Args:
            waveform: one channel at `settings.sample_rate`, at least one sample.

        Source: `ASTFeatureExtractor` of transformers; equal to it at 16 kHz.
        """
        from transformers.audio_utils import spectrogram

        settings, bank = self.settings, self._bank
        num_samples = bank.window_length + bank.hop_length * (settings.num_frames - 1)
        samples = waveform[:num_samples]
        samples = np.pad(samples, (0, max(0, bank.window_length - len(samples))))
        values = spectrogram(
            samples,
            bank.window,
            frame_length=bank.window_length,
            hop_length=bank.hop_length,
            fft_length=bank.fft_length,
            power=2.0,
            center=False,
            preemphasis=0.97,
            mel_filters=bank.filters,
            log_mel="log",
            mel_floor=float(np.finfo(np.float32).eps),
            remove_dc_offset=True,
        )
        # Filled up before the normalisation, as AST does: the filling is not the value of silence.
        filled = pad(torch.from_numpy(values), (0, settings.num_frames - values.shape[1]))
        return (filled - settings.mean) / (2 * settings.std)

    def __call__(self, spectrograms: Tensor) -> dict[str, Tensor]:
        """The model's arguments for spectrograms.

        Args:
            spectrograms: of shape [B, *stored_shape].

        Returns:
            `pixel_values`: float32 of shape [B, C, S, S].
        """
        pixels = _resized(spectrograms.float().unsqueeze(1), (self.image_size, self.image_size))
        return {"pixel_values": pixels.expand(-1, self.num_channels, -1, -1)}

    @cached_property
    def _bank(self) -> _Bank:
        return _bank(self.settings.sample_rate, self.settings.num_mel_bins)


def audio_transform(transform: ImageTransform, settings: AudioSettings) -> AudioTransform:
    """The transform for recordings of a model that takes images; the statistics of images have no part in it."""
    return AudioTransform(settings, transform.image_size, transform.num_channels)


def resample(waveform: NDArray[np.float32], sample_rate: int, wanted: int) -> NDArray[np.float32]:
    """`waveform` at `wanted` Hz instead of `sample_rate`, by a polyphase low-pass filter."""
    from scipy.signal import resample_poly

    if sample_rate == wanted:
        return waveform
    divisor = math.gcd(sample_rate, wanted)
    resampled: NDArray[np.float32] = resample_poly(waveform, wanted // divisor, sample_rate // divisor)
    return resampled


@dataclass(frozen=True, eq=False)
class _Bank:
    """What every spectrogram of one sample rate needs; lengths in samples."""

    window_length: int
    hop_length: int
    fft_length: int
    window: NDArray[np.float64]
    filters: NDArray[np.float64]


def _bank(sample_rate: int, num_mel_bins: int) -> _Bank:
    from transformers.audio_utils import mel_filter_bank, optimal_fft_length, window_function

    window_length, hop_length = round(_WINDOW_SECONDS * sample_rate), round(_HOP_SECONDS * sample_rate)
    fft_length = optimal_fft_length(window_length)
    with warnings.catch_warnings():
        # AST's own bank has one filter between two frequencies of the transform: its row is constant.
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
        filters = mel_filter_bank(
            num_frequency_bins=fft_length // 2 + 1,
            num_mel_filters=num_mel_bins,
            min_frequency=20,
            max_frequency=sample_rate // 2,
            sampling_rate=sample_rate,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
    window = window_function(window_length, "hann", periodic=False)
    return _Bank(window_length, hop_length, fft_length, window, filters)


def _resized(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """`values` [B, 1, H, W] as [B, 1, *shape]."""
    if values.shape[-2:] == shape:
        return values
    return interpolate(values, shape, mode="bilinear", antialias=True, align_corners=False)
