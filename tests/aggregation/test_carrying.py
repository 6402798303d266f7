"""Factors that are carried beside a pair: exact in either form, and as short as they can be."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedelta.aggregation.carrying import as_dense, carried_on, in_fewest, is_dense, rows_in_use
from fedelta.seeds import stream


def nothing(out: int, columns: int) -> tuple[Tensor, Tensor]:
    space = min(out, columns)
    return torch.zeros(space, columns, dtype=torch.float64), torch.zeros(out, space, dtype=torch.float64)


def factors(out: int, columns: int, rows: int, *path: int) -> tuple[Tensor, Tensor]:
    generator = stream(0, *path)
    return (
        torch.randn(rows, columns, generator=generator, dtype=torch.float64),
        torch.randn(out, rows, generator=generator, dtype=torch.float64),
    )


@given(st.integers(1, 8), st.integers(1, 8), st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_the_product_is_the_sum_of_all_that_was_added(out: int, columns: int, rounds: list[int]):
    carried, expected = nothing(out, columns), torch.zeros(out, columns, dtype=torch.float64)
    for number, rows in enumerate(rounds):
        below, beside = factors(out, columns, rows, number)
        carried = in_fewest({"x": carried_on(carried, (below, beside))})["x"]
        expected += beside @ below
        assert torch.allclose(carried[1] @ carried[0], expected, rtol=1e-9, atol=1e-9)
    assert [tuple(factor.shape) for factor in carried] == [tuple(factor.shape) for factor in nothing(out, columns)]


def test_rows_are_used_one_after_the_other_and_then_the_product_is_written_down():
    carried = nothing(6, 10)
    assert rows_in_use(*carried) == 0
    carried = carried_on(carried, factors(6, 10, 4, 0))
    assert rows_in_use(*carried) == 4
    assert not is_dense(*carried)
    carried = carried_on(carried, factors(6, 10, 4, 1))  # 8 rows, and there is space for 6
    assert is_dense(*carried)
    assert torch.equal(carried[1], torch.eye(6, dtype=torch.float64))


def test_a_wide_and_a_tall_layer_have_the_identity_on_their_short_side():
    for out, columns, place in ((3, 5, 1), (5, 3, 0), (4, 4, 0)):
        product = torch.ones(out, columns, dtype=torch.float64)
        pair = as_dense(torch.zeros(min(out, columns), columns, dtype=torch.float64), product)
        assert torch.equal(pair[place], torch.eye(min(out, columns), dtype=torch.float64))
        assert torch.equal(pair[1] @ pair[0], product)


def test_the_dense_form_is_chosen_once_it_is_shorter():
    # 10 x 10: n rows are 20 n numbers, dense 100.
    layers = {"x": carried_on(nothing(10, 10), factors(10, 10, 4, 0))}
    assert not is_dense(*in_fewest(layers)["x"])
    layers = {"x": carried_on(nothing(10, 10), factors(10, 10, 5, 0))}
    assert is_dense(*in_fewest(layers)["x"])
