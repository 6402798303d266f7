"""Recordings made on the spot: tones in a little noise."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

TONES_HZ = {"low": 300, "middle": 900, "high": 2700}
SPEAKERS = ("ann", "bob", "cyd")


def tone(hertz: float, sample_rate: int = 8000, seconds: float = 0.3, seed: int = 0) -> NDArray[np.float32]:
    """A sine wave of a drawn phase, float32 in -1..1."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    wave = 0.5 * np.sin(2 * np.pi * (hertz * time + rng.random())) + 0.01 * rng.standard_normal(len(time))
    return wave.astype(np.float32)


def encoded(
    samples: NDArray[np.float32], sample_rate: int = 8000, kind: str = "WAV", subtype: str | None = None
) -> bytes:
    """A sound file; `samples` is [samples] or [samples, channels]."""
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format=kind, subtype=subtype)
    return file.getvalue()


def write_flat(folder: Path, num_each: int = 6) -> Path:
    """`folder` with `{label}_{client}_{index}.wav` for every tone and speaker."""
    folder.mkdir()
    for number, (label, hertz) in enumerate(TONES_HZ.items()):
        for speaker in SPEAKERS:
            for index in range(num_each):
                samples = tone(hertz * (1 + 0.02 * index), seed=100 * number + index)
                (folder / f"{label}_{speaker}_{index}.wav").write_bytes(encoded(samples))
    return folder
