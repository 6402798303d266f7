"""Numbers in one floating-point format: exact, or rounded as torch rounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from fedelta.codecs.cast import Cast
from fedelta.errors import PayloadError
from fedelta.seeds import stream

FORMATS = ("bfloat16", "float16", "float32")


def test_float32_is_four_little_endian_bytes_a_number():
    # 1.0 = 0x3F800000, -2.0 = 0xC0000000
    assert Cast().pack("w", tensor([1.0, -2.0])) == bytes.fromhex("0000803f 000000c0")


def test_float16_is_two_little_endian_bytes_a_number():
    # 1.0 = 0x3C00, -2.0 = 0xC000
    assert Cast(name="float16").pack("w", tensor([1.0, -2.0])) == bytes.fromhex("003c 00c0")


def test_bfloat16_is_the_upper_half_of_float32():
    assert Cast(name="bfloat16").pack("w", tensor([1.0, -2.0])) == bytes.fromhex("803f 00c0")


@pytest.mark.parametrize("name", FORMATS)
@given(shape=st.lists(st.integers(1, 5), max_size=4), seed=st.integers(0, 1000))
def test_a_round_trip_is_torchs_own_cast(name: str, shape: list[int], seed: int):
    codec = Cast(name=name)
    numbers = torch.randn(shape, generator=stream(seed, "numbers"))
    back = codec.unpack("w", codec.pack("w", numbers), tuple(shape))
    assert back.dtype == torch.float32
    assert torch.equal(back, numbers.to(codec.dtype).float())


@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_float32_keeps_every_bit_of_any_finite_number(values: list[float]):
    numbers = tensor(values, dtype=torch.float32)
    back = Cast().unpack("w", Cast().pack("w", numbers), tuple(numbers.shape))
    assert torch.equal(back.view(torch.int32), numbers.view(torch.int32))


def test_a_transposed_tensor_is_packed_in_row_major_order():
    numbers = torch.arange(6.0).reshape(2, 3).T
    assert Cast().pack("w", numbers) == Cast().pack("w", numbers.contiguous())


def test_the_largest_number_of_float16_passes_and_the_next_is_refused():
    # 65,504 is the largest; 65,520 is half a step above it and rounds to infinity.
    codec = Cast(name="float16")
    assert codec.unpack("w", codec.pack("w", tensor([65504.0])), (1,)).item() == 65504.0
    with pytest.raises(
        PayloadError, match=r"values that are not finite in float16; its largest magnitude is 6.55e\+04"
    ):
        codec.pack("w", tensor([0.0, -65520.0]))


def test_the_hint_names_a_codec_with_the_range():
    with pytest.raises(PayloadError, match=r'\nhint: use `codec\.name = "bfloat16"`'):
        Cast(name="float16").pack("w", tensor([1e6]))


def test_the_hint_names_no_codec_that_cannot_hold_the_number_either():
    # 3.4e38 is beyond the largest bfloat16, 3.39e38.
    for name in ("float16", "bfloat16"):
        with pytest.raises(PayloadError) as caught:
            Cast(name=name).pack("w", tensor([3.4e38]))
        assert caught.value.hint is None


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_are_never_packed(name: str, value: float):
    with pytest.raises(PayloadError, match=f"not finite in {name}"):
        Cast(name=name).pack("w", tensor([0.0, value]))


@pytest.mark.parametrize(("name", "expected"), [("float32", 24), ("float16", 12), ("bfloat16", 12)])
def test_bytes_of_another_length_are_refused(name: str, expected: int):
    codec = Cast(name=name)
    with pytest.raises(
        PayloadError, match=rf"{expected + 1} bytes for a tensor \(2, 3\) in {name}, expected {expected}"
    ):
        codec.unpack("w", bytes(expected + 1), (2, 3))
