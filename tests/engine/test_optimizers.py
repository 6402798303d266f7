"""Optimizers on lanes against torch's own, and schedules by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fedelta.engine.optimizers import AdamW, Constant, Cosine, Sgd, Step
from fedelta.seeds import stream

NUM_STEPS = 7

SGD_CASES = [
    {"momentum": 0.0},
    {"momentum": 0.0, "weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
]
ADAMW_CASES = [
    {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
    {"beta1": 0.0, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.0},
    {"beta1": 0.5, "beta2": 0.0, "eps": 1e-8, "weight_decay": 0.5},
]


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "optimizer", *shape), dtype=dtype)


def torch_result(
    optimizer: type[torch.optim.Optimizer], start_P: Tensor, grads_TP: Tensor, **options: object
) -> Tensor:
    parameter = torch.nn.Parameter(start_P.clone())
    stepper = optimizer([parameter], lr=0.05, **options)
    for grad_P in grads_TP:
        parameter.grad = grad_P.clone()
        stepper.step()
    return parameter.detach()


def lane_result(optimizer: Sgd | AdamW, start_KP: Tensor, grads_TKP: Tensor) -> Tensor:
    values_KP = start_KP.clone()
    state = optimizer.state([values_KP])
    for grads_KP in grads_TKP:
        optimizer.step([values_KP], [grads_KP], state, 0.05)
    return values_KP


def torch_options(options: dict[str, float]) -> dict[str, object]:
    shared = {name: value for name, value in options.items() if not name.startswith("beta")}
    return shared | {"betas": (options["beta1"], options["beta2"])} if "beta1" in options else shared


# float64 shows that the equations are the same; float32 that the order of operations loses nothing. AdamW's
# 1 - 0.999**t has a relative rounding error of up to 3e-5 in float32, half of which passes through the root.
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(
    ("optimizer_class", "reference", "options"),
    [(Sgd, torch.optim.SGD, case) for case in SGD_CASES] + [(AdamW, torch.optim.AdamW, case) for case in ADAMW_CASES],
)
def test_every_lane_takes_the_steps_of_torchs_optimizer(
    optimizer_class: type[Sgd] | type[AdamW],
    reference: type[torch.optim.Optimizer],
    options: dict[str, float],
    dtype: torch.dtype,
    rtol: float,
):
    start_KP, grads_TKP = draw(3, 11, dtype=dtype), draw(NUM_STEPS, 3, 11, dtype=dtype)
    result_KP = lane_result(optimizer_class(**options), start_KP, grads_TKP)
    for lane in range(3):
        expected = torch_result(reference, start_KP[lane], grads_TKP[:, lane], **torch_options(options))
        torch.testing.assert_close(result_KP[lane], expected, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("optimizer", [Sgd(), Sgd(nesterov=True, weight_decay=0.1), AdamW()], ids=str)
def test_a_lane_that_is_refilled_starts_like_a_new_one_while_its_neighbour_goes_on(optimizer: Sgd | AdamW):
    start_KP, grads_TKP = draw(2, 5, dtype=torch.float64), draw(6, 2, 5, dtype=torch.float64)
    values_KP = start_KP.clone()
    state = optimizer.state([values_KP])
    for index, grads_KP in enumerate(grads_TKP):
        if index == 4:
            values_KP[1] = start_KP[1]
            for [tensor] in state.values():
                tensor[1] = 0
        optimizer.step([values_KP], [grads_KP], state, 0.05)
    torch.testing.assert_close(values_KP[:1], lane_result(optimizer, start_KP[:1], grads_TKP[:, :1]))
    torch.testing.assert_close(values_KP[1:], lane_result(optimizer, start_KP[1:], grads_TKP[4:, 1:]))


@pytest.mark.parametrize(
    "optimizer", [Sgd(), Sgd(nesterov=True), Sgd(momentum=0.0, weight_decay=0.1), AdamW()], ids=str
)
def test_the_tensors_of_one_lane_may_also_come_one_by_one(optimizer: Sgd | AdamW):
    start_KP, grads_TKP = draw(1, 9, dtype=torch.float64), draw(NUM_STEPS, 1, 9, dtype=torch.float64)
    values = [part.clone() for part in start_KP.split([4, 5], dim=1)]
    state = optimizer.state(values)
    for grads_KP in grads_TKP:
        optimizer.step(values, [part.contiguous() for part in grads_KP.split([4, 5], dim=1)], state, 0.05)
    torch.testing.assert_close(torch.cat(values, dim=1), lane_result(optimizer, start_KP, grads_TKP))


@pytest.mark.parametrize("optimizer", [Sgd(), Sgd(nesterov=True, weight_decay=0.1), AdamW()], ids=str)
def test_every_lane_may_have_its_own_rate_and_no_gradient_is_changed(optimizer: Sgd | AdamW):
    values_KP, grads_KP = draw(2, 5, dtype=torch.float64), draw(2, 5, dtype=torch.float64)
    expected = []
    for lane, rate in ((0, 0.1), (1, 0.2)):
        alone = values_KP[lane : lane + 1].clone()
        optimizer.step([alone], [grads_KP[lane : lane + 1]], optimizer.state([alone]), rate)
        expected.append(alone)
    before = grads_KP.clone()
    optimizer.step([values_KP], [grads_KP], optimizer.state([values_KP]), [0.1, 0.2])
    torch.testing.assert_close(values_KP, torch.cat(expected))
    assert torch.equal(grads_KP, before)


def test_sgd_by_hand():
    # weight decay 0.5, momentum 0.5, lr 0.1, gradient always 1, start 2:
    # step 1: g = 1 + 0.5 * 2 = 2, m = 2, w = 2 - 0.2 = 1.8
    # step 2: g = 1 + 0.5 * 1.8 = 1.9, m = 0.5 * 2 + 1.9 = 2.9, w = 1.8 - 0.29 = 1.51
    values, optimizer = torch.tensor([[2.0]], dtype=torch.float64), Sgd(momentum=0.5, weight_decay=0.5)
    state = optimizer.state([values])
    for expected in (1.8, 1.51):
        optimizer.step([values], [torch.ones(1, 1, dtype=torch.float64)], state, 0.1)
        assert values.item() == pytest.approx(expected, rel=1e-14)


def test_the_first_step_of_adamw_without_decay_has_the_length_of_the_learning_rate():
    # first / (1 - beta1) = g and sqrt(second / (1 - beta2)) = |g|, so the step is lr * sign(g) whatever g is.
    values = torch.zeros(1, 3, dtype=torch.float64)
    optimizer = AdamW(weight_decay=0.0, eps=1e-300)
    optimizer.step([values], [torch.tensor([[1e-6, -3.0, 1e6]], dtype=torch.float64)], optimizer.state([values]), 0.25)
    torch.testing.assert_close(values, torch.tensor([[-0.25, 0.25, -0.25]], dtype=torch.float64))


def test_sgd_without_momentum_keeps_no_state():
    assert Sgd(momentum=0.0).state([torch.zeros(2, 3)]) == {}


def test_constant_is_one():
    assert [Constant().factor(round, 5) for round in (1, 3, 5)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("schedule", [Constant(warmup_rounds=4), Cosine(warmup_rounds=4), Step(warmup_rounds=4)])
def test_warm_up_rises_linearly_to_one(schedule: Constant | Cosine | Step):
    assert [schedule.factor(round, 10) for round in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule.factor(5, 10) == 1.0


def test_cosine_by_hand():
    # (1 + cos(pi * (round - 1) / 6)) / 2 at 0, 60, 90 and 150 degrees
    expected = [1.0, 0.75, 0.5, (1 - math.sqrt(3) / 2) / 2]
    assert [Cosine().factor(round, 6) for round in (1, 3, 4, 6)] == pytest.approx(expected, abs=1e-15)


def test_cosine_falls_to_the_fraction_that_was_asked_for():
    # 0.2 + 0.8 * (1 + cos(pi / 2)) / 2 = 0.6 half way; warm-up of 2 rounds leaves 4
    schedule = Cosine(warmup_rounds=2, final_fraction=0.2)
    assert schedule.factor(5, 6) == pytest.approx(0.6)
    assert Cosine(final_fraction=1.0).factor(9, 10) == 1.0


def test_cosine_with_nothing_left_after_warm_up_stays_at_one():
    assert [Cosine(warmup_rounds=2).factor(round, 2) for round in (1, 2)] == [0.5, 1.0]


def test_step_multiplies_after_each_boundary():
    schedule = Step(after_rounds=(2, 4), factor_per_step=0.5)
    assert [schedule.factor(round, 5) for round in (1, 2, 3, 4, 5)] == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_step_multiplies_during_warm_up_too():
    # round 2 of 4: 2/4 * 0.1
    assert Step(warmup_rounds=4, after_rounds=(1,)).factor(2, 10) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (Sgd, {"momentum": 1.0}),
        (Sgd, {"weight_decay": -1e-4}),
        (Sgd, {"weight_decay": math.inf}),
        (AdamW, {"beta2": 1.0}),
        (AdamW, {"eps": 0.0}),
        (Constant, {"warmup_rounds": -1}),
        (Cosine, {"final_fraction": 1.5}),
        (Step, {"factor_per_step": 0.0}),
    ],
)
def test_impossible_values_are_refused(kind: type[Sgd], field: dict[str, float]):
    with pytest.raises(ValidationError, match=next(iter(field))):
        kind(**field)
