"""The cache of frozen features, filled chunk by chunk before it is needed, so that several processes can share this.

A chunk is rows that go through the frozen part of the model together. Chunks follow from the clients and from what is
cached already, so features have the same bits wherever they are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedelta.engine.prefix import CachedInputs
from fedelta.modalities.base import Inputs


@dataclass(frozen=True)
class Chunk:
    """Rows whose features are computed together.

    Args:
        rows: their numbers.
        of_test: whether they are test rows.
    """

    rows: tuple[int, ...]
    of_test: bool = False


def chunks_of(inputs: Inputs, parts: Sequence[Tensor], *, of_test: bool = False) -> list[Chunk]:
    """What is not computed yet; nothing without a cache.

    Args:
        inputs: training or test data.
        parts: rows [rows] that have no chunk in common, such as those of each client.
        of_test: whether `inputs` are the test data.
    """
    missing = inputs.missing(parts) if isinstance(inputs, CachedInputs) else []
    return [Chunk(tuple(rows.tolist()), of_test) for rows in missing]


def fill(inputs: Inputs, chunk: Chunk) -> None:
    """Computes the features of `chunk`, and stores them where all processes of the run find them."""
    if isinstance(inputs, CachedInputs):
        inputs.prepare(torch.tensor(chunk.rows))
