"""Eight bits a number on a scale for each row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from fedelta.codecs.quantize import Int8
from fedelta.errors import PayloadError
from fedelta.seeds import stream


def test_two_rows_by_hand():
    # Row 1: m = 127, so q = x. Row 2: m = 2.54, q = 127 x / 2.54 = 50 x: 100 of 2, -127 of -2.54.
    packed = Int8().pack("w", tensor([[127.0, -1.4], [2.0, -2.54]]))
    scales = torch.frombuffer(bytearray(packed[:8]), dtype=torch.float32)
    numbers = torch.frombuffer(bytearray(packed[8:]), dtype=torch.int8)
    torch.testing.assert_close(scales, tensor([1.0, 0.02]))
    assert numbers.tolist() == [127, -1, 100, -127]
    back = Int8().unpack("w", memoryview(packed), (2, 2))
    torch.testing.assert_close(back, tensor([[127.0, -1.0], [2.0, -2.54]]))


def test_a_quarter_of_float32_and_four_bytes_a_row():
    assert len(Int8().pack("w", torch.rand(10, 5, 3))) == 10 * 5 * 3 + 4 * 10
    assert len(Int8().pack("w", torch.rand(7))) == 7 + 4
    assert len(Int8().pack("w", tensor(3.0))) == 1 + 4


@given(shape=st.lists(st.integers(0, 5), max_size=3), seed=st.integers(0, 1000))
def test_no_number_is_off_by_more_than_half_a_step_of_its_row(shape: list[int], seed: int):
    numbers = torch.randn(shape, generator=stream(seed, "numbers"))
    back = Int8().unpack("w", memoryview(Int8().pack("w", numbers)), tuple(shape))
    assert back.shape == numbers.shape
    assert back.dtype == torch.float32
    if numbers.numel():
        rows = numbers.reshape(shape[0] if len(shape) > 1 else 1, -1)
        steps = rows.abs().amax(1, keepdim=True) / 127
        assert ((back.reshape(rows.shape) - rows).abs() <= 0.5 * steps * (1 + 1e-5)).all()


def test_numbers_near_the_least_float32_keep_their_sign_and_their_step():
    # 190 / 127 of the least number is not a number of float32: the scale is once the least, and 190 of it do not fit.
    least = 2.0**-149
    numbers = tensor([190 * least, -190 * least, 100 * least])
    back = Int8().unpack("w", memoryview(Int8().pack("w", numbers)), (3,))
    assert (back.double() / least).tolist() == [127.0, -127.0, 100.0]


@pytest.mark.parametrize("share", [1.0, 0.9999999, 0.99999, 0.75, 2 / 3])
def test_numbers_near_the_largest_float32_stay_finite(share: float):
    largest = share * torch.finfo(torch.float32).max
    numbers = tensor([[largest, -largest, largest / 2], [1.0, 2.0, 3.0]])
    back = Int8().unpack("w", memoryview(Int8().pack("w", numbers)), (2, 3))
    assert torch.isfinite(back).all()
    assert ((back - numbers).abs().double() <= numbers.abs().amax(1, keepdim=True).double() / 254 * (1 + 1e-5)).all()


def test_zeros_stay_zeros():
    assert not Int8().unpack("w", memoryview(Int8().pack("w", torch.zeros(3, 2))), (3, 2)).any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_never_packed(value: float):
    with pytest.raises(PayloadError, match="`w`: a tensor holds values that are NaN or infinite"):
        Int8().pack("w", tensor([0.0, value]))


def test_bytes_of_another_length_are_refused():
    with pytest.raises(PayloadError, match=r"`w`: 15 bytes for a tensor \(2, 3\) in int8, expected 14"):
        Int8().unpack("w", memoryview(bytes(15)), (2, 3))
