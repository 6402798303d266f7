"""Local rules: the corrected gradient by hand, and that no correction is exactly none."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tests.builders import assert_same_bits, deltas_of, jobs_for, start_of, tiny_data, tiny_engine
from torch import tensor

from fedelta.engine.work import ClientSettings
from fedelta.strategies.local import FedProx, Plain
from fedelta.tuning.head import Head


def test_fedprox_adds_mu_times_the_distance_from_the_anchor_in_every_lane():
    # lane 0: (1, 2) + 0.5 * ((4, 4) - (2, 6)) = (2, 1); lane 1: (0, 0) + 0.5 * ((1, 1) - (1, 3)) = (0, -1)
    grads = tensor([[1.0, 2.0], [0.0, 0.0]])
    values, anchors = tensor([[4.0, 4.0], [1.0, 1.0]]), tensor([[2.0, 6.0], [1.0, 3.0]])
    FedProx(mu=0.5).correct(grads, values, anchors)
    assert grads.tolist() == [[2.0, 1.0], [0.0, -1.0]]
    assert values.tolist() == [[4.0, 4.0], [1.0, 1.0]]
    assert anchors.tolist() == [[2.0, 6.0], [1.0, 3.0]]


def test_plain_changes_nothing():
    grads = torch.ones(2, 3)
    Plain().correct(grads, torch.full((2, 3), 5.0), torch.zeros(2, 3))
    assert torch.equal(grads, torch.ones(2, 3))


def test_fedprox_with_mu_zero_is_plain_to_the_last_bit():
    results = []
    for rule in (Plain(), FedProx(mu=0.0)):
        engine, _ = tiny_engine(Head(), tiny_data(), lanes=2, rule=rule)
        results.append(deltas_of(engine, jobs_for([5, 9, 7], start_of(engine))))
    for client_id in results[0]:
        assert_same_bits(results[0][client_id], results[1][client_id])


def test_the_first_step_is_the_same_for_every_mu_because_the_client_is_at_its_anchor():
    results = []
    for rule in (Plain(), FedProx(mu=10.0)):
        engine, _ = tiny_engine(Head(), tiny_data(), rule=rule, client=ClientSettings(local_steps=1))
        results.append(deltas_of(engine, jobs_for([6], start_of(engine)))[0])
    assert_same_bits(*results)


def test_fedprox_keeps_a_client_nearer_to_its_anchor():
    lengths = []
    for rule in (Plain(), FedProx(mu=5.0)):
        engine, _ = tiny_engine(Head(), tiny_data(), rule=rule, client=ClientSettings(local_steps=10, lr=0.02))
        delta = deltas_of(engine, jobs_for([12], start_of(engine)), lr=0.02)[0]
        lengths.append(torch.cat([part.flatten() for part in delta.values()]).norm().item())
    assert lengths[1] < 0.8 * lengths[0]


def test_a_negative_mu_is_refused():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        FedProx(mu=-0.1)
