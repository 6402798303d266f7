"""Single recordings: every form, and everything that can be wrong with one."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from tests.sounds import encoded, tone

from fedelta.modalities.base import ExampleError
from fedelta.modalities.waveforms import check_audio, check_rate, decode_audio, is_recording

WAVE = tone(440)
WAV = encoded(WAVE)
RATE = slice(24, 28)  # where the header of a WAV file has its sample rate


def with_rate(sample_rate: int) -> bytes:
    return WAV[: RATE.start] + struct.pack("<I", sample_rate) + WAV[RATE.stop :]


# A lossy format keeps the tone, not the samples.
@pytest.mark.parametrize(("kind", "tolerance"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.2), ("MP3", 0.2)])
def test_every_format_is_read(kind, tolerance, tmp_path):
    data = encoded(WAVE, kind=kind)
    (tmp_path / "a").write_bytes(data)
    for value in (
        data,
        {"bytes": data, "path": "x"},
        {"bytes": None, "path": str(tmp_path / "a")},
        str(tmp_path / "a"),
    ):
        check_audio(value)
        samples, sample_rate = decode_audio(value)
        assert (sample_rate, samples.dtype, samples.shape) == (8000, np.float32, WAVE.shape)
        np.testing.assert_allclose(samples, WAVE, atol=tolerance)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_width_of_samples_is_on_one_scale(subtype):
    samples, _ = decode_audio(encoded(WAVE, subtype=subtype))
    np.testing.assert_allclose(samples, WAVE, atol=0.02)


def test_channels_are_averaged():
    # (0.5 + 0) / 2 = 0.25
    stereo = np.stack([np.full(80, 0.5), np.zeros(80)], 1).astype(np.float32)
    samples, _ = decode_audio(encoded(stereo, subtype="FLOAT"))
    assert samples.tolist() == [0.25] * 80


def test_decoded_samples_are_read_with_their_rate():
    for samples in (WAVE, WAVE.tolist(), [WAVE.tolist(), WAVE.tolist()]):
        value = {"array": samples, "sampling_rate": 8000, "path": None}
        check_audio(value)
        decoded, sample_rate = decode_audio(value)
        assert sample_rate == 8000
        np.testing.assert_allclose(decoded, WAVE, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"array": [0.5, 0.1], "sampling_rate": None}, "a sample rate of None Hz, expected 1000 to 768000"),
        ({"array": [0.5, float("nan")], "sampling_rate": 8000}, "NaN or infinite"),
        (
            {"array": [300, -4], "sampling_rate": 8000},
            "samples up to 300, expected -1 to 1; divide them by the full scale",
        ),
        ({"array": [], "sampling_rate": 8000}, "without samples"),
        ({"array": ["a"], "sampling_rate": 8000}, "values that are not numbers"),
        ({"array": [[[0.1]]], "sampling_rate": 8000}, r"of shape \(1, 1, 1\), expected \[samples\]"),
        ([0.5, 0.1], "not a recording but list; samples need their rate: use a struct of `array` and `sampling_rate`"),
    ],
)
def test_invalid_decoded_samples_are_refused(value, message):
    for read in (check_audio, decode_audio):
        with pytest.raises(ExampleError, match=message):
            read(value)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_bytes_of_a_recording_are_known_by_their_beginning(kind):
    content = encoded(WAVE, kind=kind)
    assert is_recording(content)
    assert is_recording({"bytes": content, "path": None})
    assert not any(map(is_recording, (b"RIFF\0\0\0\0WEBP", b"\x89PNG", None, {"bytes": None}, "a.wav")))


def test_no_more_is_read_than_is_asked_for():
    # 0.2 s and the margin of 0.05 s, at 8 kHz
    assert len(decode_audio(WAV, 0.2)[0]) == 2000
    assert len(decode_audio(WAV, 9.0)[0]) == len(WAVE)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "^an empty file$"),
        (None, "^missing recording$"),
        ({"bytes": None, "path": None}, "^missing recording$"),
        (7, "^not a recording but int$"),
        (b"dear all, this is a letter", r"^not a recording in a known format \(Format not recognised\)$"),
        (WAV[:30], "^a recording that is cut off: 30 of 4844 bytes$"),
        (WAV[:2000], "^a recording that is cut off: 2000 of 4844 bytes$"),
        (encoded(WAVE[:0]), "^a recording without samples$"),
        (with_rate(0), "^a header with a sample rate of 0 or without channels$"),
        (with_rate(5), "^a sample rate of 5 Hz, expected 1000 to 768000$"),
        (with_rate(2_000_000), "^a sample rate of 2000000 Hz, expected 1000 to 768000$"),
        ("/absent/a.wav", "^No such file or directory$"),
        ("/", "^Is a directory$"),
    ],
)  # fmt: skip
def test_values_that_are_not_recordings_are_refused(value, message):
    for read in (decode_audio, check_audio):
        with pytest.raises(ExampleError, match=message):
            read(value)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(ExampleError, match=r"^an empty file$"):
        check_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(value):
    data = encoded(np.array([0, value], dtype=np.float32), subtype="FLOAT")
    with pytest.raises(ExampleError, match=r"^a recording with samples that are NaN or infinite$"):
        decode_audio(data)


def test_a_file_that_is_damaged_behind_its_header_is_refused():
    noise = np.random.default_rng(0).uniform(-1, 1, 8000).astype(np.float32)
    data = encoded(noise, kind="FLAC")
    with pytest.raises(ExampleError, match=r"^damaged recording: "):
        decode_audio(data[: len(data) // 2])


@pytest.mark.parametrize("size", [0, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_the_size_that_a_pipe_leaves_in_the_header_is_no_damage(size):
    piped = WAV[:4] + struct.pack("<I", size) + WAV[8:]
    np.testing.assert_allclose(decode_audio(piped)[0], WAVE, atol=1e-4)


def test_a_negative_sample_rate_is_refused():
    with pytest.raises(ExampleError, match="a sample rate of -1 Hz"):
        check_rate(-1)
