"""Robust means by hand, and against a client that lies."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tests.builders import assert_same_bits
from tests.strategies.hand import PLAN, SPEC, mean_of, params, step, updates
from torch import tensor

from fedelta.aggregation.base import Aggregation, Update
from fedelta.aggregation.means import Clipped, UniformDeltas, Weighted
from fedelta.aggregation.robust import Median, Trimmed
from fedelta.strategies.fedavg import FedAvg


def sent(*values: float, num_examples: int = 1) -> list[Update]:
    return [Update(client, num_examples, {"a": tensor([value])}) for client, value in enumerate(values)]


@pytest.mark.parametrize(
    ("mean", "values", "expected"),
    [
        (Median(), (5.0, -1.0, 100.0), 5.0),
        (Median(), (5.0, -1.0, 100.0, 7.0), 6.0),  # the middle of 5 and 7
        (Median(), (3.0,), 3.0),
        (Trimmed(fraction=0.25), (5.0, -1.0, 100.0, 7.0), 6.0),  # without -1 and 100
        (Trimmed(fraction=0.2), (1.0, 2.0, 3.0, 4.0, 90.0), 3.0),  # without 1 and 90
        (Trimmed(fraction=0.2), (1.0, 2.0, 6.0, 90.0), 4.0),  # 0.2 of 4 is less than one client: one, 1 and 90
        (Trimmed(fraction=0.2), (1.0, 2.0, 90.0), 2.0),
        (Clipped(max_norm=2.0), (6.0, -1.0), 0.5),  # (2 - 1) / 2
        (Weighted(), (6.0, -1.0), 2.5),
    ],
)
def test_means_by_hand(mean: Aggregation, values: tuple[float, ...], expected: float):
    assert mean_of(mean, sent(*values), SPEC)["a"].tolist() == [expected]


def test_clipping_looks_at_all_tensors_together_and_weights_by_examples():
    # Client 0: length sqrt(3^2 + 4^2) = 5, shortened to 1: (0.6, 0.8). Client 1: length 1, as it is.
    # Weighted 1 to 3: a = (0.6 + 3 * 1) / 4 = 0.9, b = (0.8 + 0) / 4 = 0.2
    two_updates = [
        Update(0, 1, {"a": tensor(3.0), "b": tensor(4.0)}),
        Update(1, 3, {"a": tensor(1.0), "b": tensor(0.0)}),
    ]
    result = mean_of(Clipped(max_norm=1.0), two_updates, SPEC)
    torch.testing.assert_close(result, {"a": tensor(0.9).double(), "b": tensor(0.2).double()}, atol=1e-7, rtol=0)


@pytest.mark.parametrize("mean", [Median(), Trimmed(fraction=0.25), Clipped(max_norm=2.0)])
def test_one_bad_client_of_four_cannot_move_the_mean_far(mean: Aggregation):
    honest, liar = (1.0, 1.1, 0.9), 1e6
    assert abs(mean_of(mean, sent(*honest, liar), SPEC)["a"].item() - 1.0) < 0.5
    assert mean_of(Weighted(), sent(*honest, liar), SPEC)["a"].item() > 1e5


def test_statistics_are_not_clipped_and_otherwise_taken_like_deltas():
    assert mean_of(Clipped(max_norm=0.1).of_statistics, sent(6.0, -1.0), SPEC)["a"].tolist() == [2.5]
    for mean in (Weighted(), Median(), Trimmed()):
        assert mean.of_statistics == mean
    assert UniformDeltas().of_statistics == Weighted()


def test_a_trimmed_share_that_is_whole_is_not_lost_to_rounding():
    # 0.29 * 100 is 28.999999999999996 in floats.
    assert Trimmed(fraction=0.29).num_trimmed(100) == 29


@pytest.mark.parametrize("mean", [Clipped(max_norm=1e9), Weighted()])
def test_without_anything_to_clip_it_is_fedavg_to_the_last_bit(mean: Aggregation):
    plain, _ = step(FedAvg(), {}, params(), PLAN, updates(), SPEC)
    result, _ = step(FedAvg(mean=mean), {}, params(), PLAN, updates(), SPEC)
    assert_same_bits(result, plain)


@pytest.mark.parametrize("mean", [Median(), Trimmed(fraction=0.0)])
def test_two_clients_of_equal_size_are_fedavg_to_the_last_bit(mean: Aggregation):
    equal = [Update(update.client_id, 8, update.delta) for update in updates()]
    plain, _ = step(FedAvg(), {}, params(), PLAN, equal, SPEC)
    result, _ = step(FedAvg(mean=mean), {}, params(), PLAN, equal, SPEC)
    assert_same_bits(result, plain)


@pytest.mark.parametrize("mean", [Weighted(), Median(), Trimmed(), Clipped()])
def test_a_tensor_is_taken_over_the_clients_that_sent_it_and_inputs_stay(mean: Aggregation):
    mixed = [*updates(), Update(7, 1, {"c": tensor([0.25])})]
    result = mean_of(mean, mixed, SPEC)
    assert result["c"].tolist() == [0.25]
    assert {name: value.dtype for name, value in result.items()} == dict.fromkeys("abc", torch.float64)
    for update, fresh in zip(mixed, updates(), strict=False):
        assert_same_bits(update.delta, fresh.delta)


@pytest.mark.parametrize("build", [lambda: Trimmed(fraction=0.5), lambda: Clipped(max_norm=0.0)])
def test_impossible_values_are_refused(build):
    with pytest.raises(ValidationError):
        build()
