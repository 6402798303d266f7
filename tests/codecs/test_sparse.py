"""The largest numbers with their places, and numbers at places that follow from a seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, tensor

from fedelta.codecs import gaps
from fedelta.codecs.sparse import RandomK, TopK
from fedelta.errors import PayloadError
from fedelta.seeds import stream

Sparse = TopK | RandomK


def back(codec: Sparse, numbers: Tensor, seed: int = 0) -> Tensor:
    return codec.unpack("w", memoryview(codec.pack("w", numbers, seed)), tuple(numbers.shape))


def test_the_largest_magnitudes_stay():
    numbers = tensor([[0.1, -4.0, 0.2], [2.0, -0.3, 0.0]])
    assert back(TopK(k=2), numbers).tolist() == [[0.0, -4.0, 0.0], [2.0, 0.0, 0.0]]
    assert back(TopK(k=0.34), numbers).tolist() == [[0.0, -4.0, 0.0], [2.0, 0.0, 0.0]]
    assert torch.equal(back(TopK(k=100), numbers), back(TopK(k=1.0), numbers))


def test_places_and_values_by_hand():
    # Places 1 and 3: gaps 1 and 1, which in unary are 01 and 01; the largest value is 4 = 2^14 2^-12, the other 2^13.
    numbers = tensor([0.1, -4.0, 0.2, 2.0])
    expected = bytes([0, 0b1010]) + bytes([256 - 12]) + bytes.fromhex("00f4 0070")
    assert TopK(k=2).pack("w", numbers, 0) == expected


def test_one_percent_at_random_takes_a_quarter_of_a_bit_a_number():
    # 16 bits for the value and 8.1 for the place; the entropy of the places is 8.08 bits each.
    numbers = torch.randn(100_000, generator=stream(0))
    assert 8 * len(TopK().pack("w", numbers, 0)) / 1000 == pytest.approx(16 + 8.1, abs=0.15)
    assert len(RandomK().pack("w", numbers, 0)) == 4 + 1 + 2 * 1000


def test_places_at_random_follow_the_seed_and_hit_all_numbers_alike():
    numbers, codec = torch.ones(40), RandomK(k=10)
    assert torch.equal(back(codec, numbers, 7), back(codec, numbers, 7))
    hits = sum(back(codec, numbers, seed) for seed in range(2000))
    assert isinstance(hits, Tensor)
    # Each place 2,000 / 4 = 500 times, with a deviation of sqrt(2000 * 3 / 16) = 19.4.
    assert ((hits - 500).abs() < 5 * 19.4).all()
    assert hits.sum() == 20_000


@given(
    codec=st.builds(TopK, k=st.sampled_from([0.01, 0.3, 1.0, 1, 5]))
    | st.builds(RandomK, k=st.sampled_from([0.01, 0.3, 1.0, 1, 5])),
    shape=st.lists(st.integers(0, 20), max_size=3),
    seed=st.integers(0, 2**63 - 1),
)
def test_what_is_sent_is_sent_to_eleven_bits(codec: Sparse, shape: list[int], seed: int):
    numbers = torch.randn(shape, generator=stream(seed)).abs() + 0.01
    result = back(codec, numbers, seed)
    sent = result != 0
    torch.testing.assert_close(result[sent], numbers[sent], rtol=2.0**-11, atol=0)
    count = min(numbers.numel(), codec.k if isinstance(codec.k, int) else max(1, int(codec.k * numbers.numel())))
    assert int(sent.sum()) == count
    if isinstance(codec, TopK) and numbers.numel():
        assert numbers[sent].min() >= numbers.reshape(-1).sort(descending=True).values[count - 1]


@pytest.mark.parametrize("k", [0, -1, 0.0, 1.5, "all", True])
def test_k_is_a_share_or_a_number(k: object):
    for codec in (TopK, RandomK):
        with pytest.raises(ValidationError):
            codec(k=k)


@given(data=st.data(), numel=st.integers(1, 2000))
def test_any_ascending_places_come_back(data: st.DataObject, numel: int):
    places = np.array(sorted(data.draw(st.sets(st.integers(0, numel - 1), min_size=1, max_size=50))))
    packed = gaps.to_bytes(places)
    assert np.array_equal(gaps.from_bytes("w", memoryview(packed), len(places), numel), places)
    # The last place does not fit into a tensor that ends before it.
    with pytest.raises(PayloadError):
        gaps.from_bytes("w", memoryview(packed), len(places), int(places[-1]))


@pytest.mark.parametrize(("share", "bits"), [(0.001, 11.41), (0.01, 8.08), (0.1, 4.69), (0.5, 2.0)])
def test_places_take_little_more_than_their_entropy(share: float, bits: float):
    # H / p with H = -p log2 p - (1 - p) log2 (1 - p).
    numel = 200_000
    places = torch.randperm(numel, generator=stream(0))[: int(share * numel)].sort().values.numpy()
    assert 8 * len(gaps.to_bytes(places)) / len(places) < 1.03 * bits + 0.15


@pytest.mark.parametrize(
    ("places", "problem"),
    [
        ("", "0 bytes for the places of 2 of 4"),
        ("00", "1 bytes for the places"),
        ("04 00 03", "3 bytes for the places"),  # more lower bits than a place has
        ("00 0a 00", "3 bytes for the places"),
        ("00 02", "1 places of values, expected 2"),
        ("00 0b", "3 places of values, expected 2"),
        ("00 22", "a value has the place 5, expected one below 4"),
    ],
)
def test_places_that_cannot_be_are_refused(places: str, problem: str):
    with pytest.raises(PayloadError, match=problem):
        gaps.from_bytes("w", memoryview(bytes.fromhex(places)), 2, 4)


def test_values_that_are_not_finite_are_refused():
    for codec in (TopK(k=1), RandomK(k=1)):
        bad = bytes(codec.pack("w", torch.ones(3), 0))[:-2] + bytes.fromhex("007e")
        with pytest.raises(PayloadError, match="a value is NaN or infinite"):
            codec.unpack("w", memoryview(bad), (3,))
        with pytest.raises(PayloadError, match="NaN or infinite"):
            codec.pack("w", tensor([torch.inf]), 0)
        with pytest.raises(PayloadError, match="bytes for"):
            codec.unpack("w", memoryview(b"x"), (3,))
        with pytest.raises(PayloadError, match="bytes for"):
            codec.unpack("w", memoryview(b"x"), (0,))


@given(codec=st.sampled_from([TopK(), TopK(k=3), RandomK(), RandomK(k=3)]), data=st.binary(max_size=40))
def test_any_bytes_give_finite_numbers_or_a_payload_error(codec: Sparse, data: bytes):
    for shape in ((), (3,), (7, 40), (0,)):
        try:
            assert codec.unpack("w", memoryview(data), shape).isfinite().all()
        except PayloadError:
            continue
