"""Named tensors: means by hand, specifications and their complaints."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from tests.builders import assert_same_bits, spec_of, weighted_mean
from torch import tensor

from fedelta.errors import SpecError
from fedelta.params import ParamSpec, TensorSpec, WeightedSum, add, rough_norm, select, side_by_side

SPEC = ParamSpec(
    {
        "one.weight": TensorSpec((2, 3), "one"),
        "two.weight": TensorSpec((4,), "two"),
        "one.bias": TensorSpec((), "one"),
    }
)


def fitting() -> dict[str, torch.Tensor]:
    return {"one.weight": torch.zeros(2, 3), "two.weight": torch.zeros(4), "one.bias": torch.zeros(())}


def test_weighted_mean_of_two_clients():
    # (1 * 2 + 3 * 6) / 4 = 5 and (1 * 0 + 3 * -4) / 4 = -3
    mean = weighted_mean([(1, {"w": tensor([2.0, 0.0])}), (3, {"w": tensor([6.0, -4.0])})])
    assert mean["w"].tolist() == [5.0, -3.0]


def test_weighted_mean_of_one_client_is_that_client():
    assert weighted_mean([(7, {"w": tensor(0.3)})])["w"].item() == tensor(0.3).item()


def test_weighted_mean_averages_each_tensor_over_those_who_sent_it():
    # a: only the first, 2. b: (1 * 4 + 3 * 8) / 4 = 7. c: only the second, 5.
    updates = [(1, {"a": tensor(2.0), "b": tensor(4.0)}), (3, {"b": tensor(8.0), "c": tensor(5.0)})]
    mean = weighted_mean(updates)
    assert {name: value.item() for name, value in mean.items()} == {"a": 2.0, "b": 7.0, "c": 5.0}
    assert list(mean) == ["a", "b", "c"]


def test_weighted_mean_of_nothing_is_nothing():
    assert weighted_mean([]) == {}


def test_weighted_mean_does_not_depend_on_the_order_where_float32_would():
    # In float32 1e8 + 1 = 1e8, so that 1e8 + 1 - 1e8 is 0 in one order and 1 in another. In float64 it is 1.
    assert (tensor(1e8) + tensor(1.0)).item() == 1e8
    values = [(1, {"w": tensor(value)}) for value in (1e8, 1.0, -1e8)]
    means = {weighted_mean(order)["w"].item() for order in permutations(values)}
    assert means == {1 / 3}


def test_weighted_mean_does_not_change_its_inputs():
    one, two = {"w": tensor([1.0])}, {"w": tensor([2.0])}
    weighted_mean([(2, one), (3, two)])
    assert (one["w"].item(), two["w"].item()) == (1.0, 2.0)


def test_weighted_mean_of_float16_tensors_keeps_the_digits_of_float64():
    # (2048 + 2049) / 2 = 2048.5; float16 has no numbers between 2048 and 2050.
    mean = weighted_mean([(1, {"w": tensor(2048.0)}), (1, {"w": tensor(2049.0)})])["w"]
    assert mean.dtype == torch.float64
    assert mean.item() == 2048.5


def test_tensors_that_lie_side_by_side_are_one_without_a_copy():
    numbers = torch.arange(6.0)
    parts = [numbers[:2], numbers[2:6].view(2, 2)]
    joined = side_by_side(parts)
    assert joined is not None
    assert joined.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert joined.data_ptr() == numbers.data_ptr()


def test_other_tensors_are_not_taken_for_one():
    numbers = torch.arange(6.0)
    assert side_by_side([]) is None
    assert side_by_side([numbers[:2], numbers[3:]]) is None  # a gap
    assert side_by_side([numbers[3:], numbers[:3]]) is None  # the wrong way round
    assert side_by_side([numbers.view(2, 3).t()]) is None  # columns first
    assert side_by_side([numbers[:2], numbers[2:].double()]) is None
    assert side_by_side([numbers[:4], numbers[4:].view(torch.int32)]) is None


def test_a_sum_of_tensors_side_by_side_has_the_bits_of_one_by_one():
    # The third client sends only a part, and the fourth one value that is somewhere else in memory.
    rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    clients = [{"a": row[:2], "b": row[2:]} for row in rows]
    del clients[2]["a"]
    clients[3]["b"] = torch.ones(3)
    together, apart = WeightedSum(), WeightedSum()
    for weight, client in enumerate(clients, start=1):
        together.add(weight, client)
        apart.add(weight, {name: tensor.clone() for name, tensor in client.items()})
    assert_same_bits(together.mean(), apart.mean())


def test_add_moves_what_the_delta_holds_and_leaves_the_rest():
    # 1 + 0.5 * 4 = 3
    params = {"a": tensor([1.0]), "b": tensor([9.0])}
    moved = add(params, {"a": tensor([4.0], dtype=torch.float64)}, 0.5)
    assert moved["a"].tolist() == [3.0]
    assert moved["b"] is params["b"]
    assert moved["a"].dtype == torch.float32
    assert params["a"].tolist() == [1.0]


def test_add_rounds_once_to_the_type_of_the_params():
    # 1 + 3 * 2**-25: in float32 each of three additions of 2**-25 would be lost; the sum rounds to 1 + 2**-23.
    # (2**-24 is half the distance to the next float32, 3 * 2**-25 is above it.)
    moved = add({"w": tensor(1.0)}, {"w": tensor(2.0**-25, dtype=torch.float64)}, 3.0)
    assert moved["w"].item() == 1 + 2.0**-23


def test_select_keeps_the_order_asked_for():
    params = {"a": tensor(1.0), "b": tensor(2.0), "c": tensor(3.0)}
    chosen = select(params, ("c", "a"))
    assert list(chosen) == ["c", "a"]
    assert chosen["c"] is params["c"]


def test_a_specification_counts_its_tensors_and_scalars():
    # 2 * 3 + 4 + 1 = 11
    assert (len(SPEC), SPEC.num_parameters) == (3, 11)
    assert list(SPEC) == ["one.weight", "two.weight", "one.bias"]


def test_groups_keep_the_order_of_their_first_tensor():
    assert list(SPEC.groups.items()) == [("one", ("one.weight", "one.bias")), ("two", ("two.weight",))]


@pytest.mark.parametrize(
    "changed",
    [
        spec_of(a=(2, 3), c=(4,)),
        spec_of(a=(3, 2), b=(4,)),
        spec_of(b=(4,), a=(2, 3)),
        spec_of(a=(2, 3)),
        spec_of(a=(2, 3), b=(4,), c=()),
    ],
    ids=["name", "shape", "order", "fewer", "more"],
)
def test_fingerprints_differ_with_names_shapes_and_order(changed: ParamSpec):
    assert changed.fingerprint != spec_of(a=(2, 3), b=(4,)).fingerprint


def test_fingerprints_of_equal_specifications_are_equal_and_eight_bytes():
    regrouped = ParamSpec({name: TensorSpec(spec.shape, "all") for name, spec in SPEC.tensors.items()})
    assert regrouped.fingerprint == SPEC.fingerprint
    assert len(SPEC.fingerprint) == 8


def test_check_accepts_what_fits_and_a_part_that_was_asked_for():
    SPEC.check(fitting())
    SPEC.check({"two.weight": torch.zeros(4)}, ["two.weight"])
    SPEC.check({}, [])


def test_check_names_every_kind_of_problem_in_one_message():
    params = {"one.weight": torch.zeros(3, 2), "two.weight": tensor([0.0, torch.nan, torch.inf, 1.0]), "new": tensor(0)}
    with pytest.raises(SpecError) as caught:
        SPEC.check(params)
    assert str(caught.value) == (
        "4 of 3 tensors do not fit: lacks `one.bias`; holds `new`, which is not expected; "
        "`one.weight` has shape (3, 2), expected (2, 3); `two.weight` holds 2 values that are NaN or infinite"
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_check_refuses_one_value_that_is_not_finite(value: float):
    params = fitting()
    params["one.weight"][1, 2] = value
    with pytest.raises(SpecError, match=r"`one\.weight` holds 1 values that are NaN or infinite"):
        SPEC.check(params)


def test_check_refuses_a_tensor_that_was_not_asked_for_though_the_specification_has_it():
    with pytest.raises(SpecError, match=r"1 of 1 tensors .*: holds `one.bias`, which is not expected"):
        SPEC.check({"two.weight": torch.zeros(4), "one.bias": tensor(0.0)}, ["two.weight"])


def test_check_shows_four_problems_and_counts_the_others():
    spec = spec_of(**{f"t{index}": (1,) for index in range(6)})
    with pytest.raises(SpecError, match=r"6 of 6 .*lacks `t0`; .*; lacks `t3`; and 2 more$"):
        spec.check({})


def test_params_that_only_differ_in_a_number_are_not_the_same_bits():
    with pytest.raises(AssertionError):
        assert_same_bits({"a": tensor(0.0)}, {"a": tensor(1e-30)})


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1e25, math.nan, math.inf])
def test_a_length_is_the_norm_to_six_digits_also_where_squares_leave_float32(scale: float):
    tensors = {"a": torch.tensor([3.0]) * scale, "b": torch.full((), 4.0) * scale, "c": torch.zeros(0)}
    assert rough_norm(tensors) == pytest.approx(5 * scale, rel=1e-6, nan_ok=True)
    assert rough_norm({}) == 0.0


def test_sums_of_several_at_once_have_the_bits_of_sums_one_by_one():
    generator = torch.Generator().manual_seed(3)
    sides = [torch.randn(70_000, generator=generator).split([69_000, 1_000]) for _ in range(7)]
    parts = [{"w": wide, "b": narrow} for wide, narrow in sides]
    parts[5] = {"b": parts[5]["b"]}  # without a tensor: added by itself, and after those before it
    total, plain = WeightedSum(), {"w": torch.zeros(69_000).double(), "b": torch.zeros(1_000).double()}
    for weight, part in enumerate(parts, 1):
        total.add(weight / 3, part)
        for name, value in part.items():
            plain[name].add_(value.double(), alpha=weight / 3)
    means = {name: value.div_(total.weights[name]) for name, value in plain.items()}
    assert all(torch.equal(mean, means[name]) for name, mean in total.mean().items())
