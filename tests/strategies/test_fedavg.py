"""FedAvg: cohorts and means by hand."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tests.builders import assert_same_bits
from tests.strategies.hand import PLAN, SPEC, params, step, updates
from torch import tensor

from fedelta.aggregation.base import Update
from fedelta.seeds import stream
from fedelta.strategies.fedavg import FedAvg


def cohort(clients_per_round: int, num_clients: int, round: int, seed: int = 0) -> tuple[int, ...]:
    strategy = FedAvg(clients_per_round=clients_per_round)
    return strategy.plan({}, round, range(num_clients), SPEC, stream(seed, "cohort", round)).cohort


def test_update_adds_the_mean_weighted_by_examples():
    # The mean is -2 and (5, 4): a = 10 - 2 = 8, b = 1 + 5 = 6 and 2 + 4 = 6
    strategy = FedAvg()
    new_params, state = step(strategy, strategy.init(params(), SPEC), params(), PLAN, updates(), SPEC)
    assert_same_bits(new_params, {"a": tensor(8.0), "b": tensor([6.0, 6.0])})
    assert state == {}


def test_the_server_learning_rate_scales_the_mean():
    # a: 10 + 0.5 * -2 = 9; b: 1 + 0.5 * 5 = 3.5 and 2 + 0.5 * 4 = 4
    new_params, _ = step(FedAvg(server_lr=0.5), {}, params(), PLAN, updates(), SPEC)
    assert_same_bits(new_params, {"a": tensor(9.0), "b": tensor([3.5, 4.0])})


def test_a_tensor_is_averaged_over_the_clients_that_sent_it():
    # a: 10 + (10 * 1 + 50 * 4) / 60 = 13.5; b: only client 4, 1 + 6 and 2 + 6
    sent = [*updates(), Update(7, 50, {"a": tensor(4.0)})]
    sent = [
        Update(u.client_id, u.num_examples, {k: v for k, v in u.delta.items() if (u.client_id, k) != (0, "b")})
        for u in sent
    ]
    del sent[1].delta["a"]
    new_params, _ = step(FedAvg(), {}, params(), PLAN, sent, SPEC)
    assert_same_bits(new_params, {"a": tensor(13.5), "b": tensor([7.0, 8.0])})


def test_a_tensor_that_no_client_sent_does_not_change():
    new_params, _ = step(FedAvg(), {}, params(), PLAN, [Update(0, 1, {"a": tensor(1.0)})], SPEC)
    assert_same_bits(new_params, {"a": tensor(11.0), "b": tensor([1.0, 2.0])})


def test_one_client_with_learning_rate_one_becomes_the_server():
    # In numbers that float32 adds exactly: 10 + 1 and (1, 2) + (2, -2)
    new_params, _ = step(FedAvg(), {}, params(), PLAN, updates()[:1], SPEC)
    assert_same_bits(new_params, {"a": tensor(11.0), "b": tensor([3.0, 0.0])})


def test_update_does_not_change_its_inputs():
    old_params, sent = params(), updates()
    step(FedAvg(), {}, old_params, PLAN, sent, SPEC)
    assert_same_bits(old_params, params())
    for update, fresh in zip(sent, updates(), strict=True):
        assert_same_bits(update.delta, fresh.delta)


def test_the_order_of_updates_of_very_different_size_does_not_matter():
    sent = [Update(client, 1, {"a": tensor(value)}) for client, value in enumerate((1e8, 1.0, -1e8))]
    forward, _ = step(FedAvg(), {}, {"a": tensor(0.0)}, PLAN, sent, SPEC)
    backward, _ = step(FedAvg(), {}, {"a": tensor(0.0)}, PLAN, sent[::-1], SPEC)
    assert forward["a"].item() == backward["a"].item() == tensor(1 / 3).item()


@pytest.mark.parametrize("round", range(1, 30))
def test_a_cohort_has_its_size_distinct_clients_and_ascending_ids(round: int):
    chosen = cohort(8, 20, round)
    assert len(chosen) == len(set(chosen)) == 8
    assert list(chosen) == sorted(chosen)
    assert set(chosen) <= set(range(20))


def test_everything_travels_down_and_up_for_the_cohort_alone():
    plan = FedAvg(clients_per_round=3).plan({}, 5, [2, 3, 5, 7], SPEC, stream(0, "cohort", 5))
    assert plan.round == 5
    assert set(plan.cohort) < {2, 3, 5, 7}
    assert dict(plan.download) == dict(plan.upload) == dict.fromkeys(plan.cohort, ("a", "b"))


def test_every_client_takes_part_when_the_cohort_is_as_large_as_the_federation():
    assert cohort(5, 5, 1) == (0, 1, 2, 3, 4)


def test_cohorts_are_uniform():
    # 1,200 rounds of 3 of 12: each client 300 times, deviation sqrt(1200 * 1/4 * 3/4) = 15; 75 is 5 of them.
    counts = torch.zeros(12, dtype=torch.int64)
    for round in range(1, 1201):
        counts[list(cohort(3, 12, round))] += 1
    assert counts.sum() == 3600
    assert (counts - 300).abs().max() < 75


def test_the_same_seed_gives_the_same_cohorts_and_another_seed_others():
    assert [cohort(4, 50, r) for r in range(9)] == [cohort(4, 50, r) for r in range(9)]
    assert [cohort(4, 50, r) for r in range(9)] != [cohort(4, 50, r, seed=1) for r in range(9)]


@pytest.mark.parametrize(
    "field",
    [{"clients_per_round": 0}, {"num_rounds": 0}, {"server_lr": 0.0}, {"min_replies": 0}, {"server_lr": torch.inf}],
)
def test_impossible_values_are_refused(field: dict[str, float]):
    with pytest.raises(ValidationError, match=next(iter(field))):
        FedAvg(**field)
