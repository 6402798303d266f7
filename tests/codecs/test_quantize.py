"""Whole numbers of eight or four bits on a scale for each group."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from fedelta.codecs.quantize import Group, Integers
from fedelta.errors import PayloadError
from fedelta.seeds import stream

INT4, INT8 = Integers(name="int4"), Integers()
CODECS = st.builds(
    Integers,
    name=st.sampled_from(["int8", "int4"]),
    group=st.sampled_from(["row", 8, 13, 32, 64]),
    rounding=st.sampled_from(["nearest", "stochastic"]),
)


def back(codec: Integers, numbers: Tensor, seed: int = 0) -> Tensor:
    return codec.unpack("w", memoryview(codec.pack("w", numbers, seed)), tuple(numbers.shape))


def test_two_rows_of_int8_by_hand():
    # Row 1: m = 127, s = 1 = 2^14 2^-14, so q = x. Row 2: m = 31.75, s = 1/4 = 2^12 2^-14 and q = 4 x.
    packed = Integers(group="row").pack("w", tensor([[127.0, -1.4], [2.0, -31.75]]), 0)
    assert bytes(packed) == bytes([256 - 14]) + bytes.fromhex("0074 006c") + bytes([127, 255, 8, 129])
    assert back(Integers(group="row"), tensor([[127.0, -1.4], [2.0, -31.75]])).tolist() == [
        [127.0, -1.0],
        [2.0, -31.75],
    ]


def test_a_byte_of_int4_holds_two_integers_half_of_the_piece_apart():
    # One group of five numbers, s = 1: the first three are the lower bits, the others the upper ones, with a zero.
    numbers = tensor([7.0, -7.0, 3.0, -2.0, 1.0])
    packed = INT4.pack("w", numbers, 0)
    # 7 - 32 = -25, -7 + 16 = 9, 3
    assert bytes(packed) == bytes([256 - 14]) + bytes.fromhex("0074") + bytes([256 - 25, 9, 3])
    assert torch.equal(back(INT4, numbers), numbers)


@pytest.mark.parametrize(
    ("codec", "shape", "expected"),
    [
        (Integers(group="row"), (10, 5, 3), 1 + 2 * 10 + 150),
        (Integers(group="row"), (7,), 1 + 2 + 7),
        (Integers(group="row"), (), 1 + 2 + 1),
        (INT8, (128,), 1 + 2 * 2 + 128),
        (INT4, (128,), 1 + 2 * 2 + 64),
        (INT4, (129,), 1 + 2 * 3 + 65),  # three groups of 43
        (Integers(name="int4", group=32), (128,), 1 + 2 * 4 + 64),
        (INT4, (8192 * 64 + 1,), (1 + 2 * 8192 + 8192 * 32) + (1 + 2 + 1)),  # in two pieces
        (INT4, (0, 3), 0),
    ],
)
def test_the_length_by_hand(codec: Integers, shape: tuple[int, ...], expected: int):
    numbers = torch.randn(shape, generator=stream(1))
    assert len(codec.pack("w", numbers, 0)) == expected
    assert back(codec, numbers).shape == numbers.shape


def test_a_group_of_64_in_four_bits_takes_four_and_a_quarter_bits_a_number():
    assert len(INT4.pack("w", torch.randn(1000, 640, generator=stream(0)), 0)) / (4 * 640_000) < 0.1329


def scale_of_each(numbers: Tensor, group: Group, largest: int) -> Tensor:
    """The scale of each number's group, not rounded: groups are rows, or the places that are equal modulo G."""
    flat = numbers.reshape(-1)
    if group == "row":
        rows = numbers.reshape(numbers.shape[0] if numbers.dim() > 1 else 1, -1)
        return (rows.abs().amax(1, keepdim=True) / largest).expand(rows.shape).reshape(-1)
    num = -(-len(flat) // group)
    return torch.stack([flat[place % num :: num].abs().amax() / largest for place in range(len(flat))])


@given(codec=CODECS, shape=st.lists(st.integers(0, 9), max_size=3), seed=st.integers(0, 1000))
def test_no_number_is_off_by_more_than_its_step(codec: Integers, shape: list[int], seed: int):
    numbers = torch.randn(shape, generator=stream(seed, "numbers"))
    result = back(codec, numbers, seed)
    assert result.shape == numbers.shape
    assert result.dtype == torch.float32
    if numbers.numel():
        steps = scale_of_each(numbers, codec.group, codec.largest)
        most = 0.5 if codec.rounding == "nearest" else 1.0
        # 2^-11 b of a step more, because scales are rounded to 11 bits.
        limit = steps * (most + codec.largest * 2.0**-11 + 1e-5)
        assert ((result - numbers).reshape(-1).abs() <= limit).all()


def test_stochastic_rounding_is_right_in_the_mean_and_follows_its_seed():
    codec = Integers(name="int4", rounding="stochastic")
    numbers = torch.linspace(-1, 1, 64)
    draws = torch.stack([back(codec, numbers, seed) for seed in range(2000)])
    # The deviation of one number is at most half a step of 1/7, of the mean of 2,000 that by 45.
    torch.testing.assert_close(draws.mean(0), numbers, atol=4 * 0.5 / 7 / 45, rtol=0)
    assert torch.equal(draws[5], back(codec, numbers, 5))
    assert not torch.equal(draws[5], draws[6])
    assert draws.abs().max() <= 1.001


def test_a_scale_below_the_least_float16_makes_zeros():
    # The second group is 2^-60 of the first; float16 with a common exponent ends 2^-40 below its largest number.
    numbers = torch.stack([torch.full((64,), 7.0), torch.full((64,), 2.0**-60)], dim=1).reshape(-1)
    assert torch.equal(back(INT4, numbers), numbers.where(numbers == 7, 0.0))


@pytest.mark.parametrize("codec", [INT4, INT8])
def test_a_scale_with_few_bits_keeps_integers_in_their_range(codec: Integers):
    # The second scale is 1.4 times the least float16 with this exponent, and becomes once that.
    small = codec.largest * 1.4 * 2.0**-24 * 2.0**-14
    numbers = torch.stack([torch.full((64,), float(codec.largest)), torch.full((64,), small)], dim=1).reshape(-1)
    expected = codec.largest * 2.0**-38
    assert back(codec, numbers)[1::2].unique().tolist() == [expected]


@pytest.mark.parametrize("codec", [INT4, INT8])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-8, 1.0, 1e8, 1e38])
def test_numbers_of_any_magnitude_keep_the_same_precision(codec: Integers, magnitude: float):
    numbers = torch.randn(500, generator=stream(3)).clamp(-3, 3)
    result = back(codec, magnitude * numbers).double() / magnitude
    assert (result - numbers).norm() / numbers.norm() < (0.11 if codec is INT4 else 0.01)


@pytest.mark.parametrize("share", [1.0, 0.9999999, 0.99999, 0.75, 2 / 3])
@pytest.mark.parametrize("codec", [INT4, INT8])
def test_numbers_near_the_largest_float32_stay_finite(codec: Integers, share: float):
    largest = share * torch.finfo(torch.float32).max
    result = back(codec, tensor([largest, -largest, largest / 2]))
    assert torch.isfinite(result).all()
    assert abs(result[0].item() / largest - 1) < 2.0**-10


def test_zeros_stay_zeros():
    assert not back(INT8, torch.zeros(3, 2)).any()
    assert not back(Integers(name="int4", rounding="stochastic"), torch.zeros(200)).any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_are_never_packed(value: float):
    with pytest.raises(PayloadError, match="`w`: a tensor holds values that are NaN or infinite"):
        INT8.pack("w", tensor([0.0, value]), 0)


def test_bytes_of_another_length_are_refused():
    with pytest.raises(PayloadError, match=r"`w`: 15 bytes for a tensor \(2, 3\) in int8, expected 9"):
        INT8.unpack("w", memoryview(bytes(15)), (2, 3))


@given(
    codec=CODECS,
    shapes=st.lists(st.sampled_from([(3, 50), (50, 3), (130,), (0, 2), ()]), min_size=1, max_size=7),
    seed=st.integers(0, 1000),
)
def test_tensors_together_have_the_bytes_and_numbers_of_each_alone(
    codec: Integers, shapes: list[tuple[int, ...]], seed: int
):
    generator = stream(seed, "numbers")
    tensors = {f"w{place}": torch.randn(shape, generator=generator) for place, shape in enumerate(shapes)}
    together = codec.pack_all(tensors, len)
    alone = {name: bytes(codec.pack(name, tensor, len(name))) for name, tensor in tensors.items()}
    assert {name: bytes(body) for name, body in together.items()} == alone
    views = {name: memoryview(body) for name, body in alone.items()}
    result, flat = codec.unpack_all(views, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    assert all(torch.equal(result[name], back(codec, tensor, 2)) for name, tensor in tensors.items())
    assert torch.equal(flat, torch.cat([result[name].reshape(-1) for name in tensors]))


@pytest.mark.parametrize(("broken", "problem"), [("007e", "a scale is NaN"), ("0000", "a scale is zero")])
def test_of_tensors_together_the_wrong_one_is_named(broken: str, problem: str):
    tensors = {name: tensor([1.0, 2.0]) for name in "abc"}
    good = {name: bytes(body) for name, body in INT8.pack_all(tensors, len).items()}
    bad = good | {"b": good["b"][:1] + bytes.fromhex(broken) + good["b"][3:]}
    with pytest.raises(PayloadError, match=f"`b`: {problem}"):
        INT8.unpack_all({name: memoryview(body) for name, body in bad.items()}, dict.fromkeys("abc", (2,)))
    with pytest.raises(PayloadError, match="`c`: a tensor holds values that are NaN"):
        INT8.pack_all(tensors | {"c": tensor([0.0, torch.nan])}, len)


@pytest.mark.parametrize(
    ("scale", "problem"),
    [
        ("007e", "a scale is NaN or infinite"),
        ("007c", "a scale is NaN or infinite"),
        ("00bc", "a scale is negative"),
        ("0080", "a scale is negative"),  # minus zero
        ("0000", "a scale is zero, but not all of its integers are"),
    ],
)
@pytest.mark.parametrize("codec", [INT4, INT8])
def test_a_scale_that_cannot_be_one_is_refused(codec: Integers, scale: str, problem: str):
    good = bytes(codec.pack("w", tensor([1.0, 2.0]), 0))
    bad = good[:1] + bytes.fromhex(scale) + good[3:]
    with pytest.raises(PayloadError, match=f"`w`: {problem}"):
        codec.unpack("w", memoryview(bad), (2,))


def test_a_scale_that_would_give_infinity_is_refused():
    good = bytes(INT8.pack("w", tensor([1.0, 2.0]), 0))
    with pytest.raises(PayloadError, match="a scale is too large for float32"):
        INT8.unpack("w", memoryview(bytes([127]) + good[1:]), (2,))


@given(codec=CODECS, data=st.binary(max_size=80), shape=st.lists(st.integers(0, 9), max_size=2))
def test_any_bytes_give_finite_numbers_or_a_payload_error(codec: Integers, data: bytes, shape: list[int]):
    for body in (data, (data * 80)[: len(codec.pack("w", torch.zeros(shape), 0))]):
        try:
            result = codec.unpack("w", memoryview(body), tuple(shape))
        except PayloadError:
            continue
        assert result.isfinite().all()
