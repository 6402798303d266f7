"""Server optimizers by hand: two rounds with the mean deltas 2 and -1."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError
from tests.strategies.hand import PLAN, SPEC, params, step, updates
from torch import tensor

from fedelta.aggregation.base import Update
from fedelta.strategies.base import Strategy
from fedelta.strategies.fedavg import FedAvg, FedAvgM
from fedelta.strategies.fedopt import FedAdagrad, FedAdam, FedYogi

SPEC_A = SPEC.__class__({"a": SPEC.tensors["a"]})


def two_rounds(strategy: Strategy) -> list[float]:
    """Where `a` is after each of two rounds, from 0."""
    server, places = {"a": tensor(0.0)}, []
    state = strategy.init(server, SPEC_A)
    for delta in (2.0, -1.0):
        server, state = step(strategy, state, server, PLAN, [Update(0, 1, {"a": tensor(delta)})], SPEC)
        places.append(server["a"].item())
    return places


def optimizer(name: str, **fields: float) -> Strategy:
    """With tau = 1 and, where there is one, beta2 = 0.75."""
    if name == "fedadagrad":
        return FedAdagrad(tau=1.0, **fields)
    return {"fedadam": FedAdam, "fedyogi": FedYogi}[name](tau=1.0, beta2=0.75, **fields)


def test_momentum_by_hand():
    # v = 2, w = 0.5 * 2 = 1; v = 0.5 * 2 - 1 = 0, w = 1 + 0.5 * 0 = 1
    assert two_rounds(FedAvgM(server_lr=0.5, momentum=0.5)) == [1.0, 1.0]


# tau = 1, so v_0 = 1; beta1 = 0.5: m = 0.5 * 2 = 1, then 0.5 * 1 - 0.5 * 1 = 0 in all three
# Adagrad: v = 1 + 4 = 5. Adam, beta2 = 0.75: v = 0.75 + 0.25 * 4 = 1.75. Yogi: v = 1 - 0.25 * 4 * sign(1 - 4) = 2.
@pytest.mark.parametrize(("name", "first_second_moment"), [("fedadagrad", 5.0), ("fedadam", 1.75), ("fedyogi", 2.0)])
def test_adaptive_optimizers_by_hand(name: str, first_second_moment: float):
    places = two_rounds(optimizer(name, server_lr=3.0, beta1=0.5))
    expected = 3.0 * 1.0 / (math.sqrt(first_second_moment) + 1.0)
    assert places == pytest.approx([expected, expected])  # m = 0 in round 2


# Second round without momentum, from the second moments above: m = -1.
# Adagrad: v = 5 + 1 = 6. Adam: v = 0.75 * 1.75 + 0.25 * 1 = 1.5625. Yogi: v = 2 - 0.25 * 1 * sign(2 - 1) = 1.75.
@pytest.mark.parametrize(
    ("name", "moments"), [("fedadagrad", (5.0, 6.0)), ("fedadam", (1.75, 1.5625)), ("fedyogi", (2.0, 1.75))]
)
def test_second_moments_of_two_rounds_by_hand(name: str, moments: tuple[float, float]):
    first_step = 2.0 / (math.sqrt(moments[0]) + 1.0)
    second = first_step - 1.0 / (math.sqrt(moments[1]) + 1.0)
    result = two_rounds(optimizer(name, server_lr=1.0, beta1=0.0))
    assert result == pytest.approx([first_step, second])


# With tau = 2^60 the roots of Adagrad's and Yogi's second moments are 2^60 to the last bit, and that of Adam without
# memory is nothing beside it: server_lr = 2^61 or 2^60 takes the adaptivity out exactly.
DEGENERATE = [
    FedAvgM(momentum=0.0),
    FedAdagrad(tau=2.0**60, server_lr=2.0**61),
    FedYogi(beta1=0.0, tau=2.0**60, server_lr=2.0**61),
    FedAdam(beta1=0.0, beta2=0.0, tau=2.0**60, server_lr=2.0**60),
]


@pytest.mark.parametrize("strategy", DEGENERATE, ids=lambda strategy: strategy.name)
def test_without_momentum_and_adaptivity_it_is_fedavg(strategy: Strategy):
    plain, _ = step(FedAvg(), {}, params(), PLAN, updates(), SPEC)
    result, _ = step(strategy, strategy.init(params(), SPEC), params(), PLAN, updates(), SPEC)
    assert {name: tensor.tolist() for name, tensor in result.items()} == {
        name: tensor.tolist() for name, tensor in plain.items()
    }


@pytest.mark.parametrize("strategy", [FedAvgM(), FedAdagrad(), FedAdam(), FedYogi()], ids=lambda kind: kind.name)
def test_a_tensor_that_no_client_sent_does_not_change_nor_does_its_state(strategy: Strategy):
    start = strategy.init(params(), SPEC)
    server, state = step(strategy, start, params(), PLAN, updates(), SPEC)
    only_a = [Update(0, 1, {"a": tensor(1.0)})]
    new_params, later = step(strategy, state, server, PLAN, only_a, SPEC)
    assert new_params["b"].tolist() == server["b"].tolist()
    assert later.keys() == state.keys()
    for key in (key for key in state if key.endswith("/b")):
        assert later[key].tolist() == state[key].tolist()


def test_adagrad_has_no_second_decay():
    with pytest.raises(ValidationError, match="beta2"):
        FedAdagrad(beta2=0.5)
