"""Parallel adapters: the sum by hand, where they are, how they start, and folding at stride 2."""

from __future__ import annotations

import math

import pytest
import torch
from tests.builders import tiny_backbone, tiny_inputs
from torch import nn

from fedelta.errors import ModelError
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.params import ParamSpec
from fedelta.seeds import stream
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.parallel import Parallel, ParallelConv


def applied(method: Parallel, family: str = "small-resnet", lanes: int = 1) -> tuple[Backbone, ParamSpec]:
    backbone = tiny_backbone(family)
    return backbone, method.apply(backbone, Lanes(lanes), stream(0))


def conv(stride: int, lanes: int = 2) -> ParallelConv:
    """One channel in and out, a kernel of ones, A = 10 in lane 0 and 100 in lane 1."""
    base = nn.Conv2d(1, 1, 3, stride=stride, padding=1, bias=False)
    nn.init.ones_(base.weight)
    layer = ParallelConv(Lanes(lanes), base, torch.zeros(1, 1))
    with torch.no_grad():
        layer.parallel.copy_(torch.tensor([10.0, 100.0])[:lanes].view(-1, 1, 1))
    return layer


@torch.no_grad()
def test_each_lane_adds_its_own_1x1_convolution():
    # x = ((1, 2), (3, 4)): with padding the 3x3 of ones sees all four pixels everywhere, 10.
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(2, 1, 2, 2)
    y = conv(stride=1)(x)
    assert y[0, 0].tolist() == [[20.0, 30.0], [40.0, 50.0]]
    assert y[1, 0].tolist() == [[110.0, 210.0], [310.0, 410.0]]


@torch.no_grad()
def test_at_stride_two_it_reads_the_pixels_under_the_centre_of_the_kernel():
    # 4 x 4 pixels 0..15; centres at rows and columns 0 and 2: pixels 0, 2, 8, 10. Sums of the 3x3 around them:
    # 0+1+4+5 = 10, 1+2+3+5+6+7 = 24, 4+5+8+9+12+13 = 51, 5+6+7+9+10+11+13+14+15 = 90.
    x = torch.arange(16.0).view(1, 1, 4, 4)
    y = conv(stride=2, lanes=1)(x)
    assert y[0, 0].tolist() == [[10.0, 44.0], [131.0, 190.0]]


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_folding_into_the_centre_gives_the_same_outputs(stride: int):
    generator = stream(0)
    base = nn.Conv2d(3, 5, 3, stride=stride, padding=1)
    for parameter in base.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    layer = ParallelConv(Lanes(1), base, torch.randn(5, 3, generator=generator))
    module = nn.Sequential()
    module.body, module.head = layer, nn.Linear(5, 2)
    x = torch.randn(4, 3, 7, 6, generator=generator)
    expected = layer(x)
    Parallel().merge(Backbone(module, Anatomy(("head",))))
    assert type(module.body) is nn.Conv2d
    torch.testing.assert_close(module.body(x), expected, rtol=1e-5, atol=1e-5)


def test_there_is_one_beside_every_3x3_and_beside_nothing_else():
    _, spec = applied(Parallel(), "resnet")
    names = [name for name in spec if name.endswith(".parallel")]
    stages = "resnet.encoder.stages"
    # Not beside the 7x7 of the stem, nor beside the 1x1 of the shortcut.
    assert names == [f"{stages}.{s}.layers.0.layer.{i}.convolution.parallel" for s in (0, 1) for i in (0, 1)]
    assert {spec.tensors[name].shape for name in names} == {(16, 16), (24, 16), (24, 24)}


def test_norms_and_head_are_trained_and_kernels_are_not():
    backbone, spec = applied(Parallel())
    convolutions = 1 + 2 * 2  # the stem, and two in each of two blocks
    norms = convolutions + 2  # and one in each shortcut
    assert len(spec) == convolutions + 4 * norms + 2
    statistics = [name for name, tensor in spec.tensors.items() if not tensor.trained]
    assert len(statistics) == 2 * norms
    assert all(name.endswith(("running_mean", "running_var")) for name in statistics)
    kernels = [p for name, p in backbone.module.named_parameters() if name.endswith("base.weight")]
    assert len(kernels) == convolutions
    assert not any(kernel.requires_grad for kernel in kernels)


def test_a_starts_he_normal_over_fan_out():
    source = ModelSource(architecture={"model_type": "resnet26"})
    backbone = build(source, ("a", "b"), seed=0)
    Parallel().apply(backbone, Lanes(1), stream(0))
    for layer in backbone.module.modules():
        if isinstance(layer, ParallelConv):
            out_channels = layer.parallel.shape[1]
            # The relative error of a standard deviation from n draws is 1 / sqrt(2 n); n is 3 * 32 and more.
            tolerance = 4 / math.sqrt(2 * layer.parallel.numel())
            assert layer.parallel.std().item() == pytest.approx(math.sqrt(2 / out_channels), rel=tolerance)


def test_started_at_zero_it_keeps_the_pretrained_function():
    backbone, _ = applied(Parallel(init="zero"))
    inputs = tiny_inputs("small-resnet", 3).tensors
    with torch.no_grad():
        torch.testing.assert_close(backbone.logits(inputs), tiny_backbone("small-resnet").logits(inputs))


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_a_model_without_3x3_convolutions_is_refused(family: str):
    with pytest.raises(
        ModelError, match=r"tuning method 'parallel' does not fit .*it has no 3x3 convolution of padding 1"
    ) as caught:
        applied(Parallel(), family)
    assert caught.value.hint == "use 'adapter' or 'lora' for this model."


@pytest.mark.parametrize("fields", [{"groups": 2}, {"dilation": 2, "padding": 2}, {"padding": 0}])
def test_a_3x3_that_reads_other_pixels_is_passed_over(fields: dict[str, int]):
    module = nn.Sequential()
    module.body, module.head = nn.Conv2d(2, 2, 3, **({"padding": 1} | fields)), nn.Linear(2, 2)
    with pytest.raises(ModelError, match="it has no 3x3 convolution of padding 1"):
        Parallel().apply(Backbone(module, Anatomy(("head",))), Lanes(1), stream(0))
