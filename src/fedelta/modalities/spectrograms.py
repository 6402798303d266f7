"""Log-mel spectrograms of waveforms.

The spectrogram of the Audio Spectrogram Transformer (AST, Gong et al. 2021, arXiv 2104.01778) as `ASTFeatureExtractor`
of transformers computes it without torchaudio: Kaldi's filter bank on windows of 25 ms every 10 ms.

Differs from it in two points: window and hop follow `sample_rate` instead of being fixed at 400 and 160 samples, and a
recording shorter than one window is padded with silence instead of raising an error.

Shapes: M mel bins, F frames.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from fedelta.modalities.settings import AudioSettings

_WINDOW_SECONDS, _HOP_SECONDS = 0.025, 0.010  # Kaldi's, and AST's


def needed_seconds(settings: AudioSettings) -> float:
    """Length in seconds of the part of a recording that its spectrogram covers."""
    return _WINDOW_SECONDS + _HOP_SECONDS * settings.num_frames


def log_mel(waveform: NDArray[np.float32], settings: AudioSettings) -> Tensor:
    """The normalised log-mel spectrogram, float32 of shape [M, F].

    Args:
        waveform: one channel at `settings.sample_rate`, at least one sample.
        settings: section `[data.audio]`.

    Source: `ASTFeatureExtractor` of transformers; equal to it at 16 kHz.
    """
    from transformers.audio_utils import spectrogram

    bank = _bank(settings.sample_rate, settings.num_mel_bins)
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
    # Padded before the normalisation, as in AST: so padding differs from the value of silence.
    padded = pad(torch.from_numpy(values), (0, settings.num_frames - values.shape[1]))
    return (padded - settings.mean) / (2 * settings.std)


def resample(waveform: NDArray[np.float32], sample_rate: int, target_rate: int) -> NDArray[np.float32]:
    """`waveform` resampled from `sample_rate` to `target_rate`, both in Hz, by a polyphase low-pass filter."""
    from scipy.signal import resample_poly

    if sample_rate == target_rate:
        return waveform
    divisor = math.gcd(sample_rate, target_rate)
    resampled: NDArray[np.float32] = resample_poly(waveform, target_rate // divisor, sample_rate // divisor)
    return resampled


@dataclass(frozen=True, eq=False)
class _Bank:
    """Window and mel filters for one sample rate; lengths in samples."""

    window_length: int
    hop_length: int
    fft_length: int
    window: NDArray[np.float64]
    filters: NDArray[np.float64]


@lru_cache(maxsize=4)
def _bank(sample_rate: int, num_mel_bins: int) -> _Bank:
    from transformers.audio_utils import mel_filter_bank, optimal_fft_length, window_function

    window_length, hop_length = round(_WINDOW_SECONDS * sample_rate), round(_HOP_SECONDS * sample_rate)
    fft_length = optimal_fft_length(window_length)
    with warnings.catch_warnings():
        # One filter of AST's bank lies between two FFT frequencies, so that its row is constant.
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
