"""Bottleneck adapters: one by hand, shared or one a block, and the two beginnings."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from tests.builders import TRANSFORMERS, deltas_of, jobs_for, start_of, tiny_backbone, tiny_data, tiny_engine
from torch import nn, tensor

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.seeds import stream
from fedelta.tuning.adapter import Adapted, Adapter, Bottleneck
from fedelta.tuning.lanes import LaneLinear, Lanes


def applied(method: Adapter, family: str = "vit", lanes: int = 1) -> tuple[Backbone, ParamSpec]:
    backbone = tiny_backbone(family)
    return backbone, method.apply(backbone, Lanes(lanes), stream(0))


def test_each_lane_adds_its_own_bottleneck_to_the_output_of_the_mlp():
    # y = (3, -1). Lane 0: Down y = 2 * 3 + 1 * -1 = 5, relu 5, Up 5 * (1, -1) + (0, 2) = (5, -3): y + that = (8, -4).
    # Lane 1: Down y = -1 * 3 + 1 * -1 = -4, relu 0, Up gives its bias (1, 1): (4, 0).
    lanes = Lanes(2)
    down = LaneLinear(lanes, torch.zeros(1, 2), torch.zeros(1))
    up = LaneLinear(lanes, torch.zeros(2, 1), torch.zeros(2))
    with torch.no_grad():
        down.weight.copy_(tensor([[[2.0, 1.0]], [[-1.0, 1.0]]]))
        up.weight.copy_(tensor([[[1.0], [-1.0]], [[1.0], [-1.0]]]))
        up.bias.copy_(tensor([[0.0, 2.0], [1.0, 1.0]]))
    layer = Adapted(lanes, nn.Identity(), Bottleneck(lanes, down, up, "relu"))
    y = tensor([[[3.0, -1.0]], [[3.0, -1.0]]])
    assert layer(y).tolist() == [[[8.0, -4.0]], [[4.0, 0.0]]]


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_it_sits_behind_the_last_layer_of_the_mlp_and_before_the_residual_sum(family: str):
    backbone, _ = applied(Adapter(), family)
    fc2 = f"{backbone.anatomy.blocks}.1.{backbone.anatomy.roles['fc2']}"
    assert isinstance(backbone.module.get_submodule(fc2), Adapted)
    assert isinstance(backbone.module.get_submodule(f"{fc2}.base"), nn.Linear)


def test_blocks_share_one_adapter_which_is_named_in_the_lowest():
    backbone, spec = applied(Adapter())
    # D = 16, reduction 8: Down 2 x 16 + 2, Up 16 x 2 + 16; and the head 3 x 16 + 3.
    assert spec.num_parameters == 34 + 48 + 51
    assert list(spec) == [
        "vit.layers.0.mlp.fc2.adapter.down.weight",
        "vit.layers.0.mlp.fc2.adapter.down.bias",
        "vit.layers.0.mlp.fc2.adapter.up.weight",
        "vit.layers.0.mlp.fc2.adapter.up.bias",
        "classifier.weight",
        "classifier.bias",
    ]
    assert list(spec.groups) == ["vit.layers.0.mlp.fc2.adapter", "classifier"]
    layers = [backbone.module.get_submodule(f"vit.layers.{block}.mlp.fc2") for block in (0, 1)]
    assert layers[0].adapter is layers[1].adapter


def test_every_block_can_have_its_own():
    _, spec = applied(Adapter(shared=False))
    assert spec.num_parameters == 2 * (34 + 48) + 51
    assert list(spec.groups) == ["vit.layers.0.mlp.fc2.adapter", "vit.layers.1.mlp.fc2.adapter", "classifier"]


def test_down_starts_as_a_linear_layer_does_and_up_at_zero():
    backbone, _ = applied(Adapter(reduction_factor=1, shared=False))
    for module in backbone.module.modules():
        if isinstance(module, Bottleneck):
            bound = 1 / math.sqrt(16)
            assert 0.8 * bound < module.down.weight.abs().max() <= bound
            assert module.down.bias.abs().max() == module.up.weight.abs().max() == module.up.bias.abs().max() == 0


def test_from_zero_everywhere_only_the_last_bias_ever_moves():
    # Down(y) = 0 and GELU(0) = 0, so the gradient of Up's matrix is 0; Up = 0, so no gradient reaches Down.
    method = Adapter(init="zero_all")
    engine, _ = tiny_engine(method, tiny_data(), lanes=2)
    for delta in deltas_of(engine, jobs_for((5, 4), start_of(engine))).values():
        moved = {name.rpartition("adapter.")[2] for name, change in delta.items() if change.abs().max() > 0}
        assert moved == {"up.bias", "classifier.weight", "classifier.bias"}


def test_the_default_beginning_lets_the_matrices_learn():
    engine, _ = tiny_engine(Adapter(), tiny_data(), lanes=2)
    for delta in deltas_of(engine, jobs_for((12, 9), start_of(engine))).values():
        assert all(change.abs().max() > 0 for change in delta.values())


def test_a_bottleneck_of_nothing_is_refused():
    with pytest.raises(ModelError) as caught:
        applied(Adapter(reduction_factor=17))
    assert caught.value.message == (
        "`tuning.reduction_factor` is 17, more than the 16 features of `vit.layers.0.mlp.fc2`."
    )
    assert caught.value.hint == "use at most 16."


@pytest.mark.parametrize("family", ["small-resnet", "resnet"])
def test_a_convolutional_network_is_refused(family: str):
    with pytest.raises(
        ModelError, match=r"tuning method 'adapter' does not fit .*ResNet.*no blocks with an MLP"
    ) as caught:
        applied(Adapter(), family)
    assert caught.value.hint == "use 'parallel' or 'lora' for this model."


@pytest.mark.parametrize("field", [{"reduction_factor": 0}, {"init": "ones"}, {"non_linearity": "tanhh"}])
def test_impossible_values_are_refused(field: dict[str, object]):
    with pytest.raises(ValidationError, match=next(iter(field))):
        Adapter(**field)
