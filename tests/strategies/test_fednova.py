"""FedNova by hand, and that equal steps make it FedAvg."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.builders import assert_same_bits
from tests.strategies.hand import PLAN, SPEC, params, step, updates
from torch import tensor

from fedelta.aggregation.base import Update
from fedelta.engine.optimizers import AdamW, Sgd
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fednova import FedNova


def test_two_clients_with_one_and_four_steps_by_hand():
    # p = 1/4 and 3/4, steps 1 and 4: tau_eff = 1/4 * 1 + 3/4 * 4 = 3.25
    # 3.25 * (1/4 * 2 / 1 + 3/4 * 8 / 4) = 3.25 * 2 = 6.5
    sent = [Update(0, 10, {"a": tensor(2.0)}, 1.0), Update(1, 30, {"a": tensor(8.0)}, 4.0)]
    new_params, state = step(FedNova(), {}, {"a": tensor(1.0)}, PLAN, sent, SPEC)
    assert new_params["a"].item() == 7.5
    assert state == {}


def test_a_tensor_that_some_hold_is_normalised_over_these_alone():
    # As above for a; b is that of client 1 alone: tau_eff = 4, and 4 * 12 / 4 = 12. c is held by clients 1 and 2 with
    # p = 3/4 and 1/4, steps 4 and 2: tau_eff = 3.5, and 3.5 * (3/4 * 8 / 4 + 1/4 * 4 / 2) = 7.
    sent = [
        Update(0, 10, {"a": tensor(2.0)}, 1.0),
        Update(1, 30, {"a": tensor(8.0), "b": tensor(12.0), "c": tensor(8.0)}, 4.0),
        Update(2, 10, {"c": tensor(4.0)}, 2.0),
    ]
    start = {"a": tensor(1.0), "b": tensor(0.0), "c": tensor(0.0), "d": tensor(5.0)}
    new_params, _ = step(FedNova(), {}, start, PLAN, sent, SPEC)
    assert {name: value.item() for name, value in new_params.items()} == {"a": 7.5, "b": 12.0, "c": 7.0, "d": 5.0}


@pytest.mark.parametrize("steps", [1.0, 7.0, Sgd().effective_steps(6), Sgd().effective_steps(11)])
def test_equal_steps_are_fedavg_to_the_last_bit(steps: float):
    sent = [replace(update, effective_steps=steps) for update in (*updates(), replace(updates()[0], num_examples=7))]
    plain, _ = step(FedAvg(server_lr=0.7), {}, params(), PLAN, sent, SPEC)
    result, _ = step(FedNova(server_lr=0.7), {}, params(), PLAN, sent, SPEC)
    assert_same_bits(result, plain)


def test_a_client_that_makes_ten_times_the_steps_in_the_same_direction_does_not_pull_more_than_its_share():
    # Each client moves 1 a step, in opposite directions: FedAvg follows the busy one, FedNova stays where it is.
    sent = [Update(0, 1, {"a": tensor(1.0)}, 1.0), Update(1, 1, {"a": tensor(-10.0)}, 10.0)]
    nova, _ = step(FedNova(), {}, {"a": tensor(0.0)}, PLAN, sent, SPEC)
    average, _ = step(FedAvg(), {}, {"a": tensor(0.0)}, PLAN, sent, SPEC)
    assert (nova["a"].item(), average["a"].item()) == (0.0, -4.5)


@pytest.mark.parametrize(
    ("optimizer", "num_steps", "expected"),
    [
        (Sgd(momentum=0.0), 5, 5.0),
        # momentum 0.5: the first gradient enters with 1 + 0.5 + 0.25, the second with 1 + 0.5, the third with 1
        (Sgd(momentum=0.5), 3, 1.75 + 1.5 + 1.0),
        # Nesterov: 0.5 * these, and 1 more for every gradient in its own step
        (Sgd(momentum=0.5, nesterov=True), 3, 3 + 0.5 * 4.25),
        (AdamW(), 3, 3.0),
    ],
)
def test_effective_steps_by_hand(optimizer: Sgd | AdamW, num_steps: int, expected: float):
    assert optimizer.effective_steps(num_steps) == pytest.approx(expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_effective_steps_are_what_the_optimizer_does_with_a_constant_gradient(nesterov: bool):
    optimizer = Sgd(momentum=0.9, nesterov=nesterov)
    values = tensor([[0.0]])
    state = optimizer.state([values])
    for _ in range(6):
        optimizer.step([values], [tensor([[1.0]])], state, lr=1.0)
    assert -values.item() == pytest.approx(optimizer.effective_steps(6))
