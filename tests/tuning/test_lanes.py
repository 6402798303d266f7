"""Modules with a lane axis, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn, tensor

from fedelta.seeds import stream
from fedelta.tuning.bias import LaneBias
from fedelta.tuning.lanes import LaneLinear, Lanes, lane_parameter, random_like


def two_lane_linear(bias: bool = True) -> tuple[Lanes, LaneLinear]:
    lanes = Lanes(2)
    layer = LaneLinear(lanes, torch.zeros(1, 2), torch.zeros(1) if bias else None)
    with torch.no_grad():
        layer.weight.copy_(tensor([[[1.0, 2.0]], [[-1.0, 10.0]]]))
        if bias:
            layer.bias.copy_(tensor([[0.5], [100.0]]))
    return lanes, layer


def test_each_lane_of_a_linear_layer_sees_its_own_rows():
    # lane 0: 1 * 1 + 2 * 1 + 0.5 = 3.5 and 1 * 2 + 2 * 0 + 0.5 = 2.5
    # lane 1: -1 * 1 + 10 * 1 + 100 = 109 and -1 * 2 + 10 * 0 + 100 = 98
    _, layer = two_lane_linear()
    x = tensor([[1.0, 1.0], [2.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    assert layer(x).tolist() == [[3.5], [2.5], [109.0], [98.0]]


def test_a_linear_layer_without_bias_multiplies_alone():
    _, layer = two_lane_linear(bias=False)
    assert layer(tensor([[1.0, 1.0], [1.0, 1.0]])).tolist() == [[3.0], [9.0]]


def test_only_the_first_lanes_are_used_when_fewer_are_active():
    lanes, layer = two_lane_linear()
    lanes.active = 1
    assert layer(tensor([[1.0, 1.0], [2.0, 0.0]])).tolist() == [[3.5], [2.5]]


def test_tokens_stay_with_their_sample():
    # [4, 3, 2]: samples 0 and 1 in lane 0, 2 and 3 in lane 1
    _, layer = two_lane_linear()
    x = torch.randn(4, 3, 2, generator=stream(0))
    expected = [nn.functional.linear(x[row], layer.weight[row // 2], layer.bias[row // 2]) for row in range(4)]
    torch.testing.assert_close(layer(x), torch.stack(expected))


def test_the_gradient_of_a_lane_does_not_touch_the_other():
    _, layer = two_lane_linear()
    layer(tensor([[1.0, 1.0], [3.0, 4.0]]))[1].sum().backward()
    assert layer.weight.grad.tolist() == [[[0.0, 0.0]], [[3.0, 4.0]]]
    assert layer.bias.grad.tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize(
    ("base", "axis", "shape"),
    [
        (nn.Linear(3, 5), -1, (4, 3)),
        (nn.Linear(3, 5), -1, (4, 6, 3)),
        (nn.LayerNorm(5), -1, (4, 6, 5)),
        (nn.Conv2d(3, 5, 2), 1, (4, 3, 6, 6)),
    ],
    ids=["linear", "linear on tokens", "layer norm", "convolution"],
)
def test_each_lane_adds_its_own_bias(base: nn.Module, axis: int, shape: tuple[int, ...]):
    x = torch.randn(shape, generator=stream(1))
    with torch.no_grad():
        base.bias.copy_(torch.arange(5.0))
        own = base(x)
        layer = LaneBias(Lanes(2), base, axis)
        torch.testing.assert_close(layer(x), own)
        layer.bias[1] += 10
        torch.testing.assert_close(layer(x), own + tensor([0.0, 0.0, 10.0, 10.0]).view(4, *[1] * (own.dim() - 1)))
    assert layer.weight is base.weight


def test_a_bias_is_added_to_its_own_channel():
    base = nn.Conv2d(1, 2, 1)
    layer = LaneBias(Lanes(1), base, 1)
    with torch.no_grad():
        base.weight.zero_()
        layer.bias.copy_(tensor([[3.0, 7.0]]))
        assert layer(torch.zeros(1, 1, 1, 2)).tolist() == [[[[3.0, 3.0]], [[7.0, 7.0]]]]


def test_lanes_start_equal_and_are_separate_memory():
    value = tensor([1.0, 2.0])
    parameter = lane_parameter(Lanes(3), value)
    assert parameter.tolist() == [[1.0, 2.0]] * 3
    with torch.no_grad():
        parameter[0] += 1
    assert parameter.tolist() == [[2.0, 3.0], [1.0, 2.0], [1.0, 2.0]]
    assert value.tolist() == [1.0, 2.0]


def test_a_random_tensor_has_the_bits_of_the_cpu_in_the_type_of_its_reference():
    reference = torch.empty(1, dtype=torch.bfloat16)
    drawn = random_like(reference, (4,), lambda empty: empty.uniform_(generator=stream(3)))
    assert drawn.dtype == torch.bfloat16
    assert torch.equal(drawn, torch.rand(4, generator=stream(3)).bfloat16())
