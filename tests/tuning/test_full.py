"""Full fine-tuning: the model's own tensors, one lane."""

from __future__ import annotations

from tests.builders import tiny_backbone

from fedelta.seeds import stream
from fedelta.tuning.full import Full
from fedelta.tuning.lanes import Lanes


def test_every_parameter_is_tuned_under_its_own_name():
    backbone, untouched = tiny_backbone("bert"), tiny_backbone("bert")
    spec = Full().apply(backbone, Lanes(1), stream(0))
    assert {name: tensor.shape for name, tensor in spec.tensors.items()} == {
        name: tuple(parameter.shape) for name, parameter in untouched.module.named_parameters()
    }


def test_parameters_of_one_layer_are_one_group_and_loose_ones_their_own():
    groups = Full().apply(tiny_backbone("vit"), Lanes(1), stream(0)).groups
    assert groups["vit.layers.0.mlp.fc1"] == ("vit.layers.0.mlp.fc1.weight", "vit.layers.0.mlp.fc1.bias")
    assert groups["vit.embeddings"] == ("vit.embeddings.cls_token", "vit.embeddings.position_embeddings")
