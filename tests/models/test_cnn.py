from __future__ import annotations

import math

import pytest
import torch

from fedelta.models.cnn import LeafCnn
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.seeds import stream
from fedelta.tuning.full import Full
from fedelta.tuning.head import Head
from fedelta.tuning.lanes import Lanes


def leaf_cnn(num_classes: int, *, seed: int = 7, **sizes: object) -> Backbone:
    source = ModelSource(architecture={"model_type": "femnist-cnn", **sizes})
    return build(source, tuple(map(str, range(num_classes))), seed=seed)


def small(num_classes: int = 5, *, seed: int = 7, hidden: int = 8) -> Backbone:
    return leaf_cnn(num_classes, seed=seed, channels=[2, 4], hidden=hidden)


def test_it_has_as_many_parameters_as_leafs_network():
    # conv1 5*5*1*32 + 32 = 832; conv2 5*5*32*64 + 64 = 51,264;
    # hidden 7*7*64*2048 + 2048 = 6,424,576; classifier 2048*62 + 62 = 127,038.
    assert leaf_cnn(62).num_parameters == 832 + 51_264 + 6_424_576 + 127_038 == 6_603_710


def test_forward_is_the_network_of_the_paper():
    # The same layers, one after the other, written as LEAF describes them.
    backbone = small()
    module = backbone.module
    assert isinstance(module, LeafCnn)
    images = torch.rand(3, 1, 28, 28, generator=stream(7, "images"))
    described = torch.nn.Sequential(
        module.conv1, torch.nn.ReLU(), torch.nn.MaxPool2d(2, 2),
        module.conv2, torch.nn.ReLU(), torch.nn.MaxPool2d(2, 2),
        torch.nn.Flatten(), module.hidden, torch.nn.ReLU(), module.classifier,
    )  # fmt: skip
    # Another order in memory, and so of the sums in a convolution.
    torch.testing.assert_close(backbone.logits({"pixel_values": images}), described(images), rtol=1e-5, atol=1e-6)


def test_weights_depend_on_the_seed_alone():
    def weights(seed: int) -> list[torch.Tensor]:
        return list(small(seed=seed).module.parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(7), weights(7), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights(7), weights(8), strict=True))


def test_the_global_generator_stays_as_it_was():
    before = torch.get_rng_state()
    small()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("layer", "fan_in"), [("conv1", 25), ("conv2", 50), ("hidden", 196), ("classifier", 64)])
def test_weights_start_as_in_pytorchs_own_layers(layer: str, fan_in: int):
    module = small(50, hidden=64).module
    bound = 1 / math.sqrt(fan_in)
    for name in ("weight", "bias"):
        assert module.get_parameter(f"{layer}.{name}").abs().max() <= bound
    # The standard deviation of a uniform distribution over (-b, b) is b / sqrt 3; 50 numbers or more.
    assert module.get_parameter(f"{layer}.weight").std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)


def test_full_tuning_names_its_tensors_and_groups_them_by_layer():
    spec = Full().apply(small(), Lanes(1), stream(7, "tuning"))
    assert list(spec.groups) == ["conv1", "conv2", "hidden", "classifier"]
    assert spec.names[:2] == ("conv1.weight", "conv1.bias")


def test_head_tuning_takes_the_last_layer():
    spec = Head().apply(small(), Lanes(2), stream(7, "tuning"))
    assert spec.names == ("classifier.weight", "classifier.bias")
