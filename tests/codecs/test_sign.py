"""One bit a number, and the mean magnitude of each group."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from fedelta.codecs.sign import Sign
from fedelta.errors import PayloadError


def back(codec: Sign, numbers: Tensor) -> Tensor:
    return codec.unpack("w", memoryview(codec.pack("w", numbers, 0)), tuple(numbers.shape))


def test_two_rows_by_hand():
    # Means of 2 and 0.5: with the exponent -13, 2^14 and 2^12. Signs: - + + + + -, the first is the lowest bit.
    numbers = tensor([[-3.0, 1.0, 2.0], [0.5, 0.25, -0.75]])
    assert Sign().pack("w", numbers, 0) == bytes([256 - 13]) + bytes.fromhex("0074 006c") + bytes([0b100001])
    assert back(Sign(), numbers).tolist() == [[-2.0, 2.0, 2.0], [0.5, 0.5, -0.5]]


def test_a_last_group_that_is_shorter_has_the_mean_of_its_own_numbers():
    numbers = torch.cat([torch.full((8,), 2.0), tensor([-4.0, 8.0])])
    assert back(Sign(group=8), numbers).tolist() == [2.0] * 8 + [-6.0, 6.0]


def test_zeros_stay_zeros_and_the_largest_numbers_stay_finite():
    assert not back(Sign(), torch.zeros(2, 3)).any()
    largest = torch.finfo(torch.float32).max
    assert back(Sign(), torch.full((5,), -largest)).isfinite().all()


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [(2, 0x7E, "NaN"), (2, 0xBC, "negative"), (-1, 0xFF, "bits are set behind the last of 6"), (0, 127, "too large")],
)
def test_what_cannot_be_signs_is_refused(place: int, value: int, problem: str):
    bad = bytearray(Sign().pack("w", torch.ones(2, 3), 0))
    bad[place] = value
    with pytest.raises(PayloadError, match=problem):
        Sign().unpack("w", memoryview(bytes(bad)), (2, 3))


def test_bytes_of_another_length_and_numbers_that_are_not_finite_are_refused():
    with pytest.raises(PayloadError, match=r"`w`: 7 bytes for a tensor \(2, 3\) in sign, expected 6"):
        Sign().unpack("w", memoryview(bytes(7)), (2, 3))
    with pytest.raises(PayloadError, match="NaN or infinite"):
        Sign().pack("w", tensor([torch.nan]), 0)


@given(data=st.binary(max_size=30), shape=st.lists(st.integers(0, 9), max_size=2))
def test_any_bytes_give_finite_numbers_or_a_payload_error(data: bytes, shape: list[int]):
    for body in (data, (data * 40)[: len(Sign().pack("w", torch.zeros(shape), 0))]):
        try:
            assert Sign().unpack("w", memoryview(body), tuple(shape)).isfinite().all()
        except PayloadError:
            continue
