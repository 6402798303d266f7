"""Recordings by row: spectrograms in memory, or made when asked for.

Each class is an `Inputs` (see batches.py), as those of stores.py.

Shapes: N rows, H and W of `AudioTransform.stored_shape`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedelta.data.audio import AudioError, check_audio, decode_audio
from fedelta.data.problems import refuse
from fedelta.data.stores import REPLACE, described, undecoded
from fedelta.models.audio import AudioTransform

if TYPE_CHECKING:
    from datasets import Dataset

    from fedelta.data.batches import Inputs

_BYTES_PER_VALUE = 2  # float16


@dataclass(frozen=True)
class StoredAudio:
    """Spectrograms in memory.

    Args:
        spectrograms: float16 of shape [N, H, W].
        transform: of the model.
    """

    spectrograms: Tensor
    transform: AudioTransform

    def __len__(self) -> int:
        return len(self.spectrograms)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """`pixel_values` of `rows` (int64, one axis)."""
        return self.transform(self.spectrograms[rows])


@dataclass(frozen=True)
class EncodedAudio:
    """Recordings that are decoded at every fetch, for data sets larger than memory.

    Args:
        dataset: N rows.
        column: holds the recordings.
        transform: of the model.
        row_numbers: int64 of shape [N], what messages call the rows.
    """

    dataset: Dataset
    column: str
    transform: AudioTransform
    row_numbers: Tensor

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """`pixel_values` of `rows` (int64, one axis).

        Raises:
            DataError: a recording is damaged behind its header.
        """
        chosen = self.dataset.select(rows.tolist())
        spectrograms, problems = _spectrograms(chosen, self.column, self.transform, self.row_numbers[rows])
        refuse(f"column {self.column!r}", problems, hint=REPLACE)
        return self.transform(spectrograms)


def audio_inputs(
    dataset: Dataset,
    column: str,
    transform: AudioTransform,
    *,
    origin: str,
    max_memory_mib: int,
    row_numbers: Tensor | None = None,
) -> Inputs:
    """The recordings of a column, as spectrograms in memory where they fit.

    Args:
        dataset: N rows.
        column: holds the recordings, in any form that `decode_audio` takes.
        transform: of the model.
        origin: names the data set in messages.
        max_memory_mib: above this many MiB of spectrograms, recordings are decoded at every fetch instead.
        row_numbers: int64 of shape [N], what messages call the rows; None is 0..N-1.

    Raises:
        DataError: rows that hold no recording, all in one message; one that is damaged behind its header is
            found here only if its spectrogram is kept in memory.
    """
    numbers = torch.arange(len(dataset)) if row_numbers is None else row_numbers
    if len(dataset) * math.prod(transform.stored_shape) * _BYTES_PER_VALUE > max_memory_mib * 2**20:
        refuse(origin, _headers(dataset, column, numbers), hint=REPLACE)
        return EncodedAudio(dataset.select_columns([column]), column, transform, numbers)
    spectrograms, problems = _spectrograms(dataset, column, transform, numbers)
    refuse(origin, problems, hint=REPLACE)
    return StoredAudio(spectrograms, transform)


def _spectrograms(
    dataset: Dataset, column: str, transform: AudioTransform, numbers: Tensor
) -> tuple[Tensor, list[str]]:
    """The spectrogram of each row, float16 of shape [N, H, W], and problems."""
    spectrograms = torch.empty((len(dataset), *transform.stored_shape), dtype=torch.float16)
    problems = []
    for row, value in undecoded(dataset, column):
        try:
            spectrograms[row] = transform.spectrogram(*decode_audio(value, transform.max_seconds))
        except AudioError as error:
            problems.append(described(int(numbers[row]), value, error))
    return spectrograms, problems


def _headers(dataset: Dataset, column: str, numbers: Tensor) -> list[str]:
    problems = []
    for row, value in undecoded(dataset, column):
        try:
            check_audio(value)
        except AudioError as error:
            problems.append(described(int(numbers[row]), value, error))
    return problems
