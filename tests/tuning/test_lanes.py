"""Modules with a lane axis, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn, tensor

from fedelta.errors import ModelError
from fedelta.seeds import stream
from fedelta.tuning.bias import LaneBias
from fedelta.tuning.lanes import LaneLayerNorm, LaneLinear, Lanes, Wrapper, lane_parameter, random_like
from fedelta.tuning.lora import LoraConv, LoraLinear
from fedelta.tuning.norms import LaneBatchNorm, LaneGroupNorm
from fedelta.tuning.parallel import ParallelConv


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
        without_bias = base(x)
        layer = LaneBias(Lanes(2), base, axis)
        torch.testing.assert_close(layer(x), without_bias)
        layer.bias[1] += 10
        torch.testing.assert_close(
            layer(x), without_bias + tensor([0.0, 0.0, 10.0, 10.0]).view(4, *[1] * (without_bias.dim() - 1))
        )
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


LAYERS = {
    "linear": (lambda lanes: LaneLinear(lanes, torch.ones(2, 2), torch.ones(2)), (2,)),
    "bias": (lambda lanes: LaneBias(lanes, nn.Linear(2, 2), -1), (2,)),
    "pair": (lambda lanes: LoraLinear(lanes, nn.Linear(2, 2), 1, 1.0, generator=stream(0)), (2,)),
    "pair of convolutions": (lambda lanes: LoraConv(lanes, nn.Conv2d(2, 2, 1), 1, 1.0, generator=stream(0)), (2, 4, 4)),
    "convolution": (lambda lanes: ParallelConv(lanes, nn.Conv2d(2, 2, 3, padding=1), torch.ones(2, 2)), (2, 4, 4)),
    "batch norm": (lambda lanes: LaneBatchNorm(lanes, nn.BatchNorm2d(2)), (2, 4, 4)),
    "layer norm": (lambda lanes: LaneLayerNorm(lanes, 2, torch.ones(1)), (3, 2)),
    "group norm": (lambda lanes: LaneGroupNorm(lanes, nn.GroupNorm(1, 2)), (2, 4, 4)),
}


@pytest.mark.parametrize(("make", "inner"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("length", [1, 2, 4, 6, 8])
def test_an_input_whose_first_axis_is_not_that_of_the_samples_is_refused(make, inner: tuple[int, ...], length: int):
    # Three lanes of two samples and one: five.
    lanes = Lanes(4)
    layer, noise = make(lanes), [stream(0)] * 3
    expected = rf"\[{length}, .*\], which 3 lanes cannot share: expected 5 samples, or a multiple, along its first axis"
    with lanes.training([2, 1, 2], noise), pytest.raises(ModelError, match=expected):
        layer(torch.ones(length, *inner))
    with lanes.training([2, 1, 2], noise):
        assert len(layer(torch.ones(5, *inner))) == 5
        assert len(layer(torch.ones(10, *inner))) == 10  # two windows of each sample
    with lanes.training([2], noise[:1]):
        assert len(layer(torch.ones(length, *inner))) == length  # with one lane there is nothing to mix


@pytest.mark.parametrize("lengths", [(2, 1, 2), (3, 3, 3)], ids=str)
@pytest.mark.parametrize("entries_per_sample", [1, 2])
@pytest.mark.parametrize(("make", "inner"), LAYERS.values(), ids=LAYERS)
def test_lanes_of_any_lengths_give_what_each_gives_alone(
    make, inner: tuple[int, ...], entries_per_sample: int, lengths: tuple[int, ...]
):
    """Outputs, gradients of the tuned tensors and of the input, and the statistics of norms."""
    lanes = Lanes(3)
    parts = [torch.randn(length * entries_per_sample, *inner, generator=stream(1, length)) for length in lengths]

    def drawn(lane: int | None) -> tuple[nn.Module, list[Tensor]]:
        """A layer with other values in each lane, or those of `lane` in the first one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = make(lanes)
        tensors = [parameter for parameter in layer.parameters() if len(parameter) == lanes.num]
        for number, parameter in enumerate(tensors):
            parameter.data = torch.rand(parameter.shape, generator=stream(2, number)) + 0.5
            parameter.data[0] = parameter.data[lane or 0]
        return layer, tensors

    def passed(layer: nn.Module, tensors: list[Tensor], xs: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        x = torch.cat(xs).requires_grad_()
        with lanes.training([len(part) // entries_per_sample for part in xs], [stream(0)] * len(xs)):
            y = layer(x)
        y.square().sum().backward()
        return y.detach(), x.grad, [tensor.detach() if tensor.grad is None else tensor.grad for tensor in tensors]

    y, grad, changed = passed(*drawn(None), parts)
    for lane, part in enumerate(parts):
        place = slice(sum(map(len, parts[:lane])), sum(map(len, parts[: lane + 1])))
        y_alone, grad_alone, changed_alone = passed(*drawn(lane), [part])
        torch.testing.assert_close(y[place], y_alone)
        torch.testing.assert_close(grad[place], grad_alone)
        for tensor_of_all, tensor_alone in zip(changed, changed_alone, strict=True):
            torch.testing.assert_close(tensor_of_all[lane], tensor_alone[0])


@pytest.mark.parametrize("others", [(1,), (4, 2)], ids=str)
def test_what_a_lane_drops_does_not_depend_on_the_other_lanes(others: tuple[int, ...]):
    lanes, ones = Lanes(3), torch.ones(20, 5)
    with lanes.training([3], [stream(7)]):
        alone = lanes.dropout(ones[:3], 0.5)
    with lanes.training([*others, 3], [*map(stream, range(len(others))), stream(7)]):
        together = lanes.dropout(ones[: sum(others) + 3], 0.5)
    assert set(alone.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(together[-3:], alone)


def attributes(layer: nn.Module) -> list[str]:
    """What a model may read off a layer that PyTorch's modules do not all have."""
    return [name for name in dir(layer) if not name.startswith("_") and name not in dir(nn.Module())]


@pytest.mark.parametrize(
    "base",
    [
        nn.Linear(2, 3),
        nn.Conv2d(2, 2, 3, stride=2),
        nn.LayerNorm(2),
        nn.Embedding(3, 2),
        nn.Sequential(nn.Linear(2, 2)),
    ],
    ids=lambda base: type(base).__name__,
)
def test_a_wrapper_has_every_attribute_of_the_layer_inside(base: nn.Module):
    wrapped = Wrapper(Lanes(2), Wrapper(Lanes(2), base))
    names = attributes(base)
    assert names
    for name in names:
        attribute, expected = getattr(wrapped, name), getattr(base, name)
        assert attribute == expected if callable(expected) else attribute is expected
    with pytest.raises(AttributeError, match="no attribute 'unheard_of'"):
        wrapped.unheard_of  # noqa: B018


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (LaneLinear(Lanes(2), torch.ones(3, 2), None, nn.Linear(2, 3, bias=False)), nn.Linear(2, 3, bias=False)),
        (LaneBatchNorm(Lanes(2), nn.BatchNorm2d(4)), nn.BatchNorm2d(4)),
        (LaneGroupNorm(Lanes(2), nn.GroupNorm(2, 4)), nn.GroupNorm(2, 4)),
    ],
    ids=["linear", "batch norm", "group norm"],
)
def test_a_replacement_of_a_layer_has_its_attributes(layer: nn.Module, expected: nn.Module):
    numbers = {name: value for name, value in vars(expected).items() if isinstance(value, int | float | tuple)}
    assert numbers
    assert {name: getattr(layer, name) for name in numbers if name != "training"}.items() <= numbers.items()


def test_a_tuned_tensor_hides_that_of_the_wrapped_layer():
    layer = LaneBias(Lanes(2), nn.Linear(2, 3), -1)
    assert layer.bias.shape == (2, 3)
    assert layer.weight.shape == (3, 2)
    assert [name for name, _ in layer.named_parameters()] == ["bias", "base.weight"]
