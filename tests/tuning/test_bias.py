"""Bias tuning: what it takes and what it refuses."""

from __future__ import annotations

import pytest
from tests.builders import ARCHITECTURES, tiny_backbone
from torch import nn

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
    module.norm, module.head = nn.BatchNorm1d(3), nn.Linear(3, 2)
    with pytest.raises(ModelError) as caught:
        Bias().apply(Backbone(module, Anatomy(("head",))), Lanes(1), stream(0))
    assert caught.value.message == (
        "tuning method 'bias' cannot tune `norm.bias`: a BatchNorm1d is none of Linear, LayerNorm, Conv2d, "
        "BatchNorm2d, GroupNorm."
    )
    assert caught.value.hint == "use 'lora' or 'head' for this model."


def test_a_layer_without_a_bias_is_passed_over():
    module = nn.Sequential()
    module.body, module.head = nn.Linear(3, 3, bias=False), nn.Linear(3, 2)
    spec = Bias().apply(Backbone(module, Anatomy(("head",))), Lanes(1), stream(0))
    assert list(spec) == ["head.weight", "head.bias"]
