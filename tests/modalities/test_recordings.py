"""Recordings by row: what is kept, and what a model gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from tests.sounds import TONES_HZ, encoded, tone

from fedelta.data.stored import StoredColumn
from fedelta.errors import DataError
from fedelta.modalities.audio import Recordings
from fedelta.modalities.settings import AudioSettings
from fedelta.modalities.stores import Encoded, Stored

RECORDINGS = Recordings(AudioSettings(sample_rate=8000, num_mel_bins=24, num_frames=32), 16)
TONES = [encoded(tone(hertz)) for hertz in TONES_HZ.values()]
CUT_FLAC = encoded(np.random.default_rng(0).uniform(-1, 1, 8000).astype(np.float32), kind="FLAC")[:3000]


def inputs(values: list[object], max_memory_mib: int = 1, row_numbers: torch.Tensor | None = None):
    dataset = Dataset.from_dict({"sound": values})
    column = StoredColumn.of(dataset, "sound", origin="the test", numbers=row_numbers)
    return RECORDINGS.store(column, max_memory_mib)


def test_spectrograms_are_made_once_and_come_in_the_order_asked_for():
    stored = inputs(TONES)
    assert isinstance(stored, Stored)
    assert (stored.raw.shape, stored.raw.dtype, len(stored)) == ((3, 16, 16), torch.float16, 3)
    pixels = stored.fetch(torch.tensor([2, 0]))["pixel_values"]
    assert pixels.shape == (2, 3, 16, 16)
    assert torch.equal(pixels[1], stored.raw[0].float().expand(3, -1, -1))


def test_without_memory_recordings_are_decoded_at_every_fetch_to_the_same_values():
    lazy, eager = inputs(TONES, max_memory_mib=0), inputs(TONES)
    assert isinstance(lazy, Encoded)
    assert len(lazy) == 3
    rows = torch.tensor([1, 0, 1])
    assert torch.equal(lazy.fetch(rows)["pixel_values"], eager.fetch(rows)["pixel_values"])


@pytest.mark.parametrize("max_memory_mib", [0, 1])
def test_every_row_without_a_recording_is_named(max_memory_mib):
    values = [
        {"bytes": b"text", "path": "a.wav"},
        {"bytes": TONES[0], "path": "b.wav"},
        {"bytes": TONES[0][:99], "path": None},
    ]
    with pytest.raises(
        DataError,
        match=r"(?s)2 problems in the test.*row 40 \(a.wav\): not a recording.*row 42: .*cut off: 99 of.*hint: repair",
    ):
        inputs(values, max_memory_mib, torch.arange(40, 43))


def test_ten_bad_rows_are_named_and_the_others_counted():
    with pytest.raises(DataError, match=r"(?s)14 problems.*row 9: .*and 4 more"):
        inputs([b"text"] * 14)


def test_damage_behind_the_header_is_found_when_it_is_read_or_fetched():
    values = [TONES[0], CUT_FLAC]
    with pytest.raises(DataError, match="row 1: damaged recording"):
        inputs(values)
    lazy = inputs(values, max_memory_mib=0, row_numbers=torch.tensor([5, 8]))
    with pytest.raises(DataError, match="row 8: damaged recording"):
        lazy.fetch(torch.tensor([0, 1]))
