"""Decodes single recordings in every form a data set may hold: encoded bytes, files, arrays of samples."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fedelta.modalities.base import ExampleError

if TYPE_CHECKING:
    from soundfile import SoundFile

# Recordings are made between 8 kHz (telephone) and 192 kHz (studio). A rate far outside comes from a damaged header,
# and resampling from it would exhaust the memory.
_RATES = range(1000, 768_001)
# Read this much more than asked for: the resampling filter looks ahead that far at 1 kHz.
_MARGIN_SECONDS = 0.05
# Mixing may slightly exceed full scale; integer samples that were converted to floats far exceed it.
_MAX_SAMPLE = 2.0
_NO_RATE = "; samples need their rate: use a struct of `array` and `sampling_rate`, or a sound file"
# Programs that write to a pipe cannot go back to fill in the size, and write this or a larger placeholder.
_UNKNOWN_SIZE = 0x7FFF_0000


def check_audio(value: object) -> None:
    """Refuses a value that is not a recording; reads only its header.

    Raises:
        ExampleError: see `decode_audio`.
    """
    if _is_decoded(value):
        _of_array(value)
        return
    with _opened(value):
        pass


def is_recording(value: object) -> bool:
    """Whether bytes, or the bytes in a struct, begin like a WAV, FLAC, OGG or MP3 file."""
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(content, bytes):
        return False
    is_wave = content[:4] in {b"RIFF", b"RIFX", b"RF64"} and content[8:12] == b"WAVE"
    # An MP3 frame begins with eleven 1 bits; an ID3 tag may come first.
    is_frame = len(content) > 1 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0
    return is_wave or is_frame or content.startswith((b"fLaC", b"OggS", b"ID3"))


def decode_audio(value: object, max_seconds: float | None = None) -> tuple[NDArray[np.float32], int]:
    """The samples of a recording, channels averaged, in -1..1, and its sample rate in Hz.

    Args:
        value: WAV, FLAC, OGG or MP3 as bytes, as a path, or as `{"bytes": ..., "path": ...}`; or decoded samples,
            `{"array": ..., "sampling_rate": ...}`, in -1..1.
        max_seconds: reading stops here, plus a short margin for resampling; None: read all.

    Raises:
        ExampleError: `value` is not a recording, is cut off, has no samples, or has values that are not finite.
    """
    import soundfile

    if _is_decoded(value):
        return _of_array(value)
    with _opened(value) as sound:
        limit = -1 if max_seconds is None else math.ceil((max_seconds + _MARGIN_SECONDS) * sound.samplerate)
        try:
            samples = sound.read(limit, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise ExampleError(f"damaged recording: {_reason(error)}") from error
        return one_channel(samples.T), sound.samplerate


def one_channel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over the channels of `samples` [channels, samples].

    Raises:
        ExampleError: there are no samples, or some are not finite.
    """
    if samples.size == 0:
        raise ExampleError("a recording without samples")
    if not np.isfinite(samples).all():
        raise ExampleError("a recording with samples that are NaN or infinite")
    mean: NDArray[np.float32] = samples.mean(0, dtype=np.float32)
    return mean


def check_rate(sample_rate: object) -> None:
    """Refuses an implausible sample rate (Hz).

    Raises:
        ExampleError: states the accepted range.
    """
    if not isinstance(sample_rate, int) or sample_rate not in _RATES:
        raise ExampleError(f"a sample rate of {sample_rate} Hz, expected {_RATES[0]} to {_RATES[-1]}")


def check_scale(largest: float) -> None:
    """Refuses samples that were not divided by the full scale of their integer format.

    Raises:
        ExampleError: states the accepted range.
    """
    if largest > _MAX_SAMPLE:
        raise ExampleError(f"samples up to {largest:g}, expected -1 to 1; divide them by the full scale")


def _is_decoded(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping) and value.get("array") is not None


def _of_array(value: Mapping[str, Any]) -> tuple[NDArray[np.float32], int]:
    """One channel and the sample rate of decoded samples; Any: any type that a file can hold."""
    try:
        samples = np.atleast_2d(np.asarray(value["array"], dtype=np.float32))
    except (TypeError, ValueError):
        raise ExampleError("an `array` with values that are not numbers") from None
    if samples.ndim != 2:
        raise ExampleError(f"an `array` of shape {samples.shape}, expected [samples] or [channels, samples]")
    check_rate(value.get("sampling_rate"))
    waveform = one_channel(samples)
    check_scale(float(np.abs(waveform).max()))
    return waveform, int(value["sampling_rate"])


@contextmanager
def _opened(value: object) -> Iterator[SoundFile]:
    import soundfile

    with _bytes_of(value) as file:
        _check_whole(file)
        try:
            sound = soundfile.SoundFile(file)
        except soundfile.SoundFileError as error:
            raise ExampleError(_reason(error)) from error
        with sound:
            check_rate(sound.samplerate)
            if sound.frames == 0:
                raise ExampleError("a recording without samples")
            yield sound


def _bytes_of(value: object) -> IO[bytes]:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        raise ExampleError("missing recording")
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if not isinstance(value, str | Path):
        raise ExampleError(f"not a recording but {type(value).__name__}{_NO_RATE if isinstance(value, list) else ''}")
    try:
        return Path(value).expanduser().open("rb")
    except (OSError, RuntimeError) as error:
        raise ExampleError(getattr(error, "strerror", None) or str(error)) from error


def _check_whole(file: IO[bytes]) -> None:
    """Refuses an empty file, and a WAV file shorter than its header states, which libsndfile would accept."""
    head = file.read(8)
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    if num_bytes == 0:
        raise ExampleError("an empty file")
    expected_bytes = int.from_bytes(head[4:8], "little") + 8
    # The header often counts a padding byte that was not written.
    if head[:4] == b"RIFF" and num_bytes + 1 < expected_bytes < _UNKNOWN_SIZE:
        raise ExampleError(f"a recording that is cut off: {num_bytes} of {expected_bytes} bytes")


def _reason(error: Exception) -> str:
    reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
    if "SF_INFO struct incomplete" in reason:
        # libsndfile's message for a header with impossible values.
        return "a header with a sample rate of 0 or without channels"
    return f"not a recording in a known format ({reason})"
