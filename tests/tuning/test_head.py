"""Head tuning: which layers are the head."""

from __future__ import annotations

import pytest
from tests.builders import tiny_backbone
from torch import nn

from fedelta.errors import ModelError
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.seeds import stream
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("vit", ["classifier"]),
        ("deit", ["classifier"]),
        ("bert", ["classifier"]),
        ("roberta", ["classifier.dense", "classifier.out_proj"]),
        ("distilbert", ["pre_classifier", "classifier"]),
    ],
)
def test_the_head_is_every_linear_layer_above_the_base_model(family: str, layers: list[str]):
    spec = Head().apply(tiny_backbone(family), Lanes(2), stream(0))
    assert list(spec.groups) == layers
    assert list(spec) == [f"{layer}.{name}" for layer in layers for name in ("weight", "bias")]


def test_a_head_without_a_bias_is_merged_without_one():
    module = nn.Sequential()
    module.body, module.head = nn.Linear(3, 3), nn.Linear(3, 2, bias=False)
    backbone = Backbone(module, Anatomy(("head",)))
    assert list(Head().apply(backbone, Lanes(1), stream(0))) == ["head.weight"]
    Head().merge(backbone)
    assert type(module.head) is nn.Linear
    assert module.head.bias is None


def test_a_head_without_a_linear_layer_is_refused():
    module = nn.Sequential()
    module.body, module.head = nn.Linear(3, 3), nn.Conv2d(3, 2, 1)
    with pytest.raises(ModelError, match=r"the head \['head'\] of Sequential has no linear layer"):
        Head().apply(Backbone(module, Anatomy(("head",))), Lanes(1), stream(0))
