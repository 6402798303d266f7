"""Clipped norms are within their limit, whatever the tensors hold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import assert_same_bits, spec_of
from torch import Tensor, tensor

from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.privacy.clipping import clipped, clipped_by_group

# Any number that float32 holds: zeros, the smallest subnormal ones, and the largest.
NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 3.4028234663852886e38, -3.4028234663852886e38, 1.0]),
)
TENSORS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.lists(NUMBERS, max_size=6).map(lambda numbers: tensor(numbers, dtype=torch.float32)),
    min_size=1,
)
LIMITS = st.floats(1e-6, 1e6)


def exact_norm(tensors: Params) -> float:
    """The Euclidean norm with one rounding."""
    return math.hypot(*(value for part in tensors.values() for value in part.double().flatten().tolist()))


@given(TENSORS, LIMITS)
def test_no_norm_exceeds_the_limit(tensors: Params, limit: float):
    assert exact_norm(clipped(tensors, limit)) <= limit


@given(TENSORS, LIMITS)
def test_a_direction_stays_and_a_norm_below_the_limit_too(tensors: Params, limit: float):
    length, result = exact_norm(tensors), clipped(tensors, limit)
    factor = 1.0 if length <= limit else limit / length
    for name, part in tensors.items():
        torch.testing.assert_close(result[name], part.double() * factor, rtol=1e-9, atol=0)


@given(TENSORS, LIMITS)
def test_a_clipped_delta_is_still_within_the_limit_when_it_is_rounded_to_float32(tensors: Params, limit: float):
    # Each element may be rounded up by half a unit in its last place.
    rounded = {name: part.to(torch.float32) for name, part in clipped(tensors, limit).items()}
    assert exact_norm(rounded) <= limit * (1 + 2.0**-23) + 1e-44


@given(TENSORS, LIMITS)
def test_per_group_every_group_keeps_to_its_share_and_all_of_them_to_the_whole(tensors: Params, limit: float):
    spec = ParamSpec({name: TensorSpec(part.shape, "ab" if name in "ab" else name) for name, part in tensors.items()})
    num_groups = len(spec.groups)
    result = clipped_by_group(tensors, spec, limit / math.sqrt(num_groups))
    for names in spec.groups.values():
        assert exact_norm({name: result[name] for name in names}) <= limit / math.sqrt(num_groups)
    assert exact_norm(result) <= limit * (1 + 1e-15)
    assert set(result) == set(tensors)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_as_zero(value: float):
    result = clipped({"a": tensor([1.0, value]), "b": tensor(3.0)}, 1.0)
    assert_same_bits(result, {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)})


def test_a_norm_beyond_float64_is_clipped_too():
    huge = {"a": torch.full((4,), 1e200, dtype=torch.float64)}
    assert clipped(huge, 2.0)["a"].norm() <= 2.0


def test_a_million_elements_of_one_size_are_scaled_by_one_factor():
    part: Tensor = torch.full((1000, 1000), 7.0)
    result = clipped({"a": part, "b": tensor([0.0])}, 1.0)
    torch.testing.assert_close(result["a"], torch.full_like(part, 1e-3, dtype=torch.float64), rtol=1e-11, atol=0)
    assert exact_norm({"a": result["a"]}) <= 1.0


def test_groups_are_those_of_the_specification():
    tensors = {"a": tensor([3.0, 4.0]), "b": tensor([0.3, 0.4])}
    result = clipped_by_group(tensors, spec_of(a=(2,), b=(2,)), 1.0)
    torch.testing.assert_close(result["a"], tensor([0.6, 0.8], dtype=torch.float64), rtol=1e-11, atol=0)
    torch.testing.assert_close(result["b"], tensor([0.3, 0.4]).double())
