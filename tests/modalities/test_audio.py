"""Log-mel spectrograms, and what a model gets of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.sounds import tone
from transformers import ASTFeatureExtractor

from fedelta.modalities.audio import Recordings
from fedelta.modalities.image import Images
from fedelta.modalities.settings import AudioSettings, Preparation
from fedelta.modalities.spectrograms import log_mel, resample

AST = Recordings(AudioSettings(), 128)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 2.0], ids=["filled up", "filled up a little", "cut"])
@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_the_spectrogram_is_that_of_the_audio_spectrogram_transformer(seconds):
    extractor = ASTFeatureExtractor(max_length=128)
    waveform = tone(700, 16_000, seconds)
    # Frames come first there, mel bins here.
    (expected,) = extractor(waveform, sampling_rate=16_000)["input_values"]
    np.testing.assert_allclose(log_mel(waveform, AudioSettings()).T, expected, rtol=1e-5, atol=1e-5)
    # What is kept has the 11 bits of float16: values are below 2.
    np.testing.assert_allclose(AST.spectrogram(waveform, 16_000).float().T, expected, atol=1e-3)


def test_the_numbers_are_those_of_the_original():
    settings = AudioSettings()
    extractor = ASTFeatureExtractor
    defaults = dict(zip(extractor.__init__.__code__.co_varnames[1:], extractor.__init__.__defaults__, strict=False))
    assert settings.sample_rate == defaults["sampling_rate"]
    assert (settings.num_mel_bins, settings.mean, settings.std) == tuple(
        defaults[name] for name in ("num_mel_bins", "mean", "std")
    )


@pytest.mark.parametrize("hertz", [250, 1000, 3000])
def test_a_tone_has_its_peak_in_one_bin_at_every_sample_rate(hertz):
    peaks = {
        int(AST.spectrogram(tone(hertz, sample_rate), sample_rate)[:, 2:25].float().mean(1).argmax())
        for sample_rate in (8000, 16_000, 44_100, 48_000)
    }
    assert len(peaks) == 1


def test_higher_tones_are_further_down():
    peaks = [int(AST.spectrogram(tone(hertz), 8000)[:, :25].float().mean(1).argmax()) for hertz in (200, 800, 3200)]
    assert peaks == sorted(set(peaks))


def test_window_and_hop_follow_the_sample_rate():
    # Half a second is 1 + floor((0.5 - 0.025) / 0.01) = 48 frames at every rate; the rest is filled up with
    # (0 - mean) / (2 std).
    filling = 4.2677393 / (2 * 4.5689974)
    for sample_rate in (8000, 16_000, 22_050):
        recordings = Recordings(AudioSettings(sample_rate=sample_rate, num_mel_bins=40, num_frames=60), 64)
        spectrogram = recordings.spectrogram(tone(500, sample_rate, 0.5), sample_rate).float()
        assert spectrogram.shape == (40, 60)
        is_filled = ((spectrogram - filling).abs() < 1e-3).all(0)
        assert is_filled.tolist() == [False] * 48 + [True] * 12


def test_resampling_keeps_length_and_loudness():
    wave = tone(1000, 44_100, 0.5)
    resampled = resample(wave, 44_100, 16_000)
    assert (len(resampled), resampled.dtype) == (8000, np.float32)
    assert np.sqrt((resampled**2).mean()) == pytest.approx(np.sqrt((wave**2).mean()), rel=0.01)
    assert resample(wave, 16_000, 16_000) is wave


def test_a_recording_shorter_than_a_window_is_one_frame():
    spectrogram = log_mel(np.ones(1, dtype=np.float32), AudioSettings())
    assert spectrogram.shape == (128, 128)
    assert spectrogram.isfinite().all()
    assert spectrogram[:, 1:].unique().numel() == 1


@pytest.mark.parametrize(("size", "shape"), [(32, (32, 32)), (127, (127, 127)), (128, (128, 128)), (224, (128, 128))])
def test_no_more_is_stored_than_the_model_sees(size, shape):
    recordings = Recordings(AudioSettings(), size)
    spectrogram = recordings.spectrogram(tone(500), 8000)
    assert (tuple(spectrogram.shape), spectrogram.dtype, recordings.stored_shape) == (shape, torch.float16, shape)
    pixels = recordings.transform(torch.stack([spectrogram, spectrogram]))["pixel_values"]
    assert (pixels.shape, pixels.dtype) == ((2, 3, size, size), torch.float32)
    assert torch.equal(pixels[:, 0], pixels[:, 2])


def test_image_statistics_do_not_affect_recordings():
    images = Images.from_preprocessor({"image_mean": [9.0], "image_std": [7.0]}, 128, 1)
    recordings = images.prepared(Preparation(audio=AudioSettings()))
    spectrogram = recordings.spectrogram(tone(500), 8000)
    assert torch.equal(recordings.transform(spectrogram[None])["pixel_values"], spectrogram.float()[None, None])


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("sample_rate", 0, "greater than or equal to 1000"),
        ("sample_rate", 16_000.5, "valid integer"),
        ("num_mel_bins", 0, "greater than or equal to 1"),
        ("num_frames", 0, "greater than or equal to 1"),
        ("std", 0.0, "greater than 0"),
        ("mean", float("nan"), "finite"),
    ],
)
def test_impossible_settings_are_refused(setting, value, message):
    with pytest.raises(ValidationError, match=message):
        AudioSettings(**{setting: value})
