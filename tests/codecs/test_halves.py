"""Float16 with a common exponent: as precise for any magnitude."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from fedelta.codecs import halves
from fedelta.errors import PayloadError


def back(numbers: Tensor) -> Tensor:
    packed = halves.to_bytes(numbers, numbers.abs().max())
    assert len(packed) == halves.num_bytes(len(numbers))
    return halves.from_bytes("w", memoryview(packed), signed=True)


@given(values=st.lists(st.floats(-1, 1, width=32), min_size=1), exponent=st.integers(-100, 127))
def test_numbers_are_right_to_eleven_bits_or_to_2_to_the_minus_39_of_the_largest(values: list[float], exponent: int):
    numbers = tensor(values) * 2.0**exponent
    largest = numbers.abs().max().item()
    # The least step of float16 is 2^-24, half of that is lost, and the largest number is at least 2^14.
    limit = (numbers.abs().double() * 2.0**-11).clamp(min=max(largest * 2.0**-39, 2.0**-121))
    assert ((back(numbers).double() - numbers.double()).abs() <= limit).all()


def test_the_largest_float32_is_rounded_down():
    largest = torch.finfo(torch.float32).max
    assert back(tensor([largest, -largest])).isfinite().all()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("00007e", "NaN or infinite"),
        ("0000fc", "NaN or infinite"),
        ("00ff7f", "NaN or infinite"),
        ("7f007b", "too large"),
    ],
)
def test_what_is_no_number_is_refused(data: str, problem: str):
    with pytest.raises(PayloadError, match=f"`w`: a value is {problem}"):
        halves.from_bytes("w", memoryview(bytes.fromhex(data)), signed=True)
