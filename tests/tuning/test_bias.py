"""Bias tuning: what it takes and what it refuses."""

from __future__ import annotations

import pytest
import torch
from tests.builders import ARCHITECTURES, tiny_backbone
from torch import nn
from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm
from transformers.models.mobilebert.modeling_mobilebert import NoNorm
from transformers.pytorch_utils import Conv1D

from fedelta.errors import ModelError
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.seeds import stream
from fedelta.tuning.bias import Bias
from fedelta.tuning.lanes import Lanes


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_bias_of_the_model_and_the_whole_head_are_tuned(family: str):
    untouched, backbone = tiny_backbone(family), tiny_backbone(family)
    spec = Bias().apply(backbone, Lanes(2), stream(0))
    head = untouched.anatomy.head
    expected = {
        name
        for name, _ in untouched.module.named_parameters()
        if name.endswith(".bias") or name.partition(".")[0] in head
    }
    assert set(spec) == expected


def test_a_layer_whose_bias_cannot_have_lanes_is_refused_by_name():
    module = nn.Sequential()
    module.norm, module.head = nn.Bilinear(3, 3, 3), nn.Linear(3, 2)
    with pytest.raises(ModelError) as caught:
        Bias().apply(Backbone(module, Anatomy(("head",))), Lanes(1), stream(0))
    assert caught.value.message.startswith(
        "tuning method 'bias' cannot tune `norm.bias`: the layer is a Bilinear, expected one of Linear,"
    )
    assert caught.value.hint == "use 'lora' or 'head' for this model."


def test_a_layer_without_a_bias_is_passed_over():
    module = nn.Sequential()
    module.body, module.next, module.head = nn.Linear(3, 3, bias=False), nn.Linear(3, 3), nn.Linear(3, 2)
    spec = Bias().apply(Backbone(module, Anatomy(("head",))), Lanes(1), stream(0))
    assert list(spec) == ["next.bias", "head.weight", "head.bias"]


def test_a_model_whose_only_bias_is_in_its_head_is_refused():
    module = nn.Sequential()
    module.body, module.head = nn.Linear(3, 3, bias=False), nn.Linear(3, 2)
    with pytest.raises(ModelError, match="has no bias outside of its head, so only the head would be tuned"):
        Bias().apply(Backbone(module, Anatomy(("head",))), Lanes(1), stream(0))


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (Conv1D(2, 3), torch.ones(4, 5, 3)),
        (ConvNextLayerNorm(3, data_format="channels_first"), torch.arange(48.0).view(4, 3, 2, 2)),
        (ConvNextLayerNorm(3), torch.arange(24.0).view(4, 2, 3)),
        (NoNorm(3), torch.ones(4, 5, 3)),
        (nn.LayerNorm((2, 3)), torch.arange(24.0).view(4, 2, 3)),
        (nn.Conv1d(3, 2, 3, padding=1), torch.ones(4, 3, 5)),
        (nn.ConvTranspose2d(3, 2, 2), torch.ones(4, 3, 2, 2)),
        (nn.BatchNorm1d(3).eval(), torch.ones(4, 3)),
        (nn.InstanceNorm1d(3, affine=True), torch.arange(48.0).view(4, 3, 4)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_bias_of_a_layer_has_lanes_and_goes_back(layer: nn.Module, inputs: torch.Tensor):
    module = nn.Sequential()
    module.body, module.head = layer, nn.Linear(2, 2)
    backbone, lanes = Backbone(module, Anatomy(("head",))), Lanes(2)
    Bias().apply(backbone, lanes, stream(0))
    values = torch.arange(float(module.body.bias.numel())).view(module.body.bias.shape)
    with torch.no_grad():
        module.body.bias.copy_(values)
        together = module.body(inputs)
    Bias().merge(backbone)
    assert module.body is layer
    for lane, rows in enumerate((slice(2), slice(2, 4))):
        with torch.no_grad():
            layer.bias.copy_(values[lane])
            torch.testing.assert_close(together[rows], layer(inputs[rows]))
