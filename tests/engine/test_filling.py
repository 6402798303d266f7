"""The cache is filled in chunks that follow from the clients and from what is cached, and from nothing else."""

from __future__ import annotations

import pytest
import torch
from tests.builders import tiny_data, tiny_engine

from fedelta.engine import prefix
from fedelta.engine.filling import Chunk, chunks_of, fill
from fedelta.engine.lanes import LaneEngine
from fedelta.modalities.base import Inputs
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head

PARTS = [torch.tensor([4, 1, 2, 7, 9]), torch.tensor([1, 3])]


@pytest.fixture(autouse=True)
def two_rows_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "_CHUNK", {"cpu": 2})


@pytest.fixture
def inputs() -> Inputs:
    return engine(Head()).inputs


def engine(method: Head | Full) -> LaneEngine:
    return tiny_engine(method, tiny_data(), cache_bytes=2**20)[0]


def test_chunks_have_the_rows_of_one_client_and_each_row_once(inputs):
    assert chunks_of(inputs, PARTS) == [Chunk((4, 1)), Chunk((2, 7)), Chunk((9,)), Chunk((3,))]


def test_only_what_is_missing_is_computed(inputs):
    fill(inputs, Chunk((1, 2)))
    chunks = chunks_of(inputs, PARTS)
    assert chunks == [Chunk((4, 7)), Chunk((9,)), Chunk((3,))]
    for chunk in chunks:
        fill(inputs, chunk)
    assert chunks_of(inputs, PARTS) == []
    assert chunks_of(inputs, [torch.tensor([0])], of_test=True) == [Chunk((0,), of_test=True)]


def test_features_are_those_that_the_whole_chunk_gives(inputs):
    fill(inputs, Chunk((5, 0)))
    together = inputs._compute(torch.tensor([5, 0]))
    for name, features in inputs.fetch(torch.tensor([0, 5])).items():
        assert torch.equal(features, together[name].flip(0))


def test_without_a_cache_there_is_nothing_to_compute():
    assert chunks_of(engine(Full()).inputs, PARTS) == []
