"""Rows of tuned tensors: what is loaded is what is read, lane by lane."""

from __future__ import annotations

import torch
from tests.builders import spec_of
from torch import nn, tensor

from fedelta.engine.bank import LaneBank
from fedelta.params import side_by_side
from fedelta.tuning.lanes import LaneLinear, Lanes

SPEC = spec_of(weight=(1, 2), bias=(1,))


def bank_and_layer(num_lanes: int = 2) -> tuple[LaneBank, LaneLinear]:
    layer = LaneLinear(Lanes(num_lanes), tensor([[1.0, 2.0]]), tensor([3.0]))
    return LaneBank(layer, SPEC, num_lanes), layer


def tuned(matrix: torch.Tensor) -> list[list[float]]:
    """The two columns of the weight and the one of the bias, which begins at the next multiple of 16."""
    return matrix[:, [0, 1, 16]].tolist()


def test_the_bank_holds_the_values_that_the_module_had():
    bank, _ = bank_and_layer()
    assert tuned(bank.values_KP) == [[1.0, 2.0, 3.0]] * 2


def test_every_tensor_of_every_lane_begins_at_a_multiple_of_64_bytes():
    bank, layer = bank_and_layer()
    tensors = [lane for parameter in (layer.weight, layer.bias) for lane in parameter]
    assert [tensor.data_ptr() % 64 for tensor in tensors] == [0] * 4
    assert bank.values_KP.sum() == 2 * (1 + 2 + 3)  # what lies between them is zero


def test_a_loaded_lane_is_what_the_module_computes_with():
    bank, layer = bank_and_layer()
    bank.load(1, {"weight": tensor([[5.0, 6.0]]), "bias": tensor([7.0])})
    assert layer.weight.tolist() == [[[1.0, 2.0]], [[5.0, 6.0]]]
    assert layer.bias.tolist() == [[3.0], [7.0]]


def test_tensors_that_were_written_to_since_are_loaded_again():
    bank, _ = bank_and_layer()
    anchor = {"weight": tensor([[5.0, 6.0]]), "bias": tensor([7.0])}
    bank.load(0, anchor)
    anchor["weight"] += 1
    bank.load(1, anchor)
    assert bank.read(1)["weight"].tolist() == [[6.0, 7.0]]


def test_tensors_whose_writes_pytorch_does_not_count_are_loaded_each_time():
    bank, _ = bank_and_layer()
    with torch.inference_mode():
        anchor = {"weight": tensor([[5.0, 6.0]]), "bias": tensor([7.0])}
        bank.load(0, anchor)
        anchor["weight"] += 1
        bank.load(1, anchor)
    assert bank.read(1)["weight"].tolist() == [[6.0, 7.0]]


def test_a_delta_is_values_minus_anchor():
    # loaded 5, 6, 7; moved by 0.5
    bank, _ = bank_and_layer()
    bank.load(1, {"weight": tensor([[5.0, 6.0]]), "bias": tensor([7.0])})
    bank.values_KP[1] += 0.5
    assert {name: value.tolist() for name, value in bank.delta(1).items()} == {"weight": [[0.5, 0.5]], "bias": [0.5]}
    assert {name: value.tolist() for name, value in bank.read(1).items()} == {"weight": [[5.5, 6.5]], "bias": [7.5]}


def test_a_tensor_that_is_not_loaded_keeps_its_value_and_is_its_own_anchor():
    bank, _ = bank_and_layer()
    bank.values_KP[0] += 1
    bank.load(0, {"bias": tensor([0.0])})
    assert bank.read(0)["weight"].tolist() == [[2.0, 3.0]]
    assert bank.delta(0)["weight"].tolist() == [[0.0, 0.0]]


def test_the_deltas_of_several_lanes_are_those_of_each_and_lie_side_by_side():
    # lane 0 moves by 1, lane 1 by 2, and the second comes first
    bank, _ = bank_and_layer()
    for lane in (0, 1):
        bank.load(lane, {})
    bank.values_KP += tensor([[1.0], [2.0]])
    second, first = bank.deltas([1, 0])
    assert {name: value.tolist() for name, value in second.items()} == {"weight": [[2.0, 2.0]], "bias": [2.0]}
    assert {name: value.tolist() for name, value in first.items()} == {"weight": [[1.0, 1.0]], "bias": [1.0]}
    assert side_by_side(second.values()) is not None


def test_a_lane_gets_what_it_is_loaded_with_whatever_another_had_before():
    bank, _ = bank_and_layer()
    params = {"weight": tensor([[5.0, 6.0]]), "bias": tensor([7.0])}
    bank.load(0, params)
    bank.values_KP[0] = 0
    bank.load(1, params, {"bias": tensor([9.0])})  # the same tensors, but for a local value
    assert bank.read(1)["weight"].tolist() == [[5.0, 6.0]]
    assert bank.read(1)["bias"].tolist() == [9.0]
    assert bank.delta(1)["bias"].tolist() == [2.0]
    bank.load(0, {"weight": tensor([[1.0, 1.0]]), "bias": params["bias"]})
    assert bank.read(0)["weight"].tolist() == [[1.0, 1.0]]
    bank.load(0, {"weight": params["weight"]})  # only a part: the bias stays as it is
    bank.load(1, params)
    assert [bank.read(lane)["bias"].tolist() for lane in (0, 1)] == [[7.0], [7.0]]


def test_moving_a_lane_takes_its_anchor_along():
    bank, _ = bank_and_layer()
    bank.load(1, {"weight": tensor([[5.0, 6.0]]), "bias": tensor([7.0])})
    bank.values_KP[1] += 2
    bank.move(1, 0)
    assert bank.read(0)["bias"].tolist() == [9.0]
    assert bank.delta(0)["bias"].tolist() == [2.0]


def test_what_was_read_does_not_change_with_the_bank():
    bank, _ = bank_and_layer()
    bank.load(0, {})
    read, delta = bank.read(0), bank.delta(0)
    bank.values_KP += 1
    assert read["bias"].tolist() == [3.0]
    assert delta["bias"].tolist() == [0.0]


def test_gradients_are_rows_and_zero_where_the_loss_does_not_reach():
    # d/dw of w x = x = (4, 5) in lane 1 alone
    bank, layer = bank_and_layer()
    bank.grads_KP.fill_(9.0)
    bank.backward(layer(tensor([[1.0, 1.0], [4.0, 5.0]]))[1].sum())
    assert tuned(bank.grads_KP) == [[0.0, 0.0, 0.0], [4.0, 5.0, 1.0]]
    bank.backward(layer.weight.sum())
    assert tuned(bank.grads_KP) == [[1.0, 1.0, 0.0]] * 2


def test_tensors_without_a_lane_axis_are_one_row():
    layer = nn.Linear(2, 1)
    bank = LaneBank(layer, SPEC, 1)
    bank.load(0, {"weight": tensor([[5.0, 6.0]]), "bias": tensor([7.0])})
    assert layer.weight.tolist() == [[5.0, 6.0]]
    bank.backward(layer(tensor([[1.0, 2.0]])).sum())
    assert tuned(bank.grads_KP) == [[1.0, 2.0, 1.0]]
    assert torch.equal(bank.read(0)["bias"], tensor([7.0]))


def test_by_tensor_gradients_are_those_in_rows_and_are_given_away():
    layer = nn.Linear(2, 1)
    bank = LaneBank(layer, SPEC, 1, by_tensor=True)
    bank.backward(layer(tensor([[1.0, 2.0]])).sum())
    assert {name: grad.tolist() for name, grad in bank.gradient(0).items()} == {"weight": [[1.0, 2.0]], "bias": [1.0]}
    assert [grad.tolist() for grad in bank.gradients(1)] == [[[1.0, 2.0]], [[1.0]]]
    assert bank.gradients(1) == []


def test_a_gradient_that_autograd_only_expands_is_memory_of_its_own():
    # d/dw of the sum of w is 1 everywhere, which autograd keeps as one number.
    layer = nn.Linear(2, 1)
    bank = LaneBank(layer, SPEC, 1, by_tensor=True)
    bank.backward(layer.weight.sum())
    weight, bias = bank.gradients(1)
    assert (weight.tolist(), weight.stride()) == ([[1.0, 1.0]], (2, 1))
    assert bias.tolist() == [[0.0]]
