"""Bottleneck adapters: one by hand, shared or one a block, and the two beginnings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from tests.builders import (
    TRANSFORMERS,
    deltas_of,
    jobs_for,
    start_of,
    tiny_backbone,
    tiny_data,
    tiny_engine,
    tiny_inputs,
)
from torch import nn, tensor

from benchmarks import small
from fedelta.errors import ModelError
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
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
    layer = Adapted(lanes, nn.Identity(), Bottleneck(lanes, down, up, "relu"), scale=1.0, tap=None)
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


# Where the MLP of the first block reads the residual stream: its own path, and the layers of the MLP.
PLACES = {
    "vit": ("vit.layers.0", "layernorm_after"),
    "bert": ("bert.encoder.layer.0", "intermediate"),
    "distilbert": ("distilbert.transformer.layer.0", "ffn.lin1"),
}


@pytest.mark.parametrize("family", PLACES)
def test_beside_the_mlp_the_adapter_reads_what_enters_the_mlp_or_the_norm_before_it(family: str):
    # y = fc2(...) + scale * Up(relu(Down r)), with r taken from the untouched model and y from the tuned one.
    path, entrance = PLACES[family]
    method = Adapter(placement="parallel", shared=False, reduction_factor=4, non_linearity="relu", scale=0.3)
    backbone, plain = applied(method, family, lanes=2)[0], tiny_backbone(family)
    fc2 = backbone.anatomy.roles["fc2"]
    adapter = backbone.module.get_submodule(f"{path}.{fc2}").adapter
    generator, values = stream(1), dict(adapter.named_parameters())
    with torch.no_grad():
        for parameter in values.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    captured: dict[str, torch.Tensor] = {}
    keep_input = plain.module.get_submodule(f"{path}.{entrance}").register_forward_pre_hook
    keep_input(lambda _, args: captured.update(r=args[0]))
    for name, module in (("before", plain.module), ("after", backbone.module)):
        module.get_submodule(f"{path}.{fc2}").register_forward_hook(
            lambda _, args, y, name=name: captured.update({name: y})
        )
    inputs = tiny_inputs(family, 4).tensors
    with torch.no_grad():
        plain.logits(inputs)
        backbone.logits(inputs)
        for lane in range(2):
            rows = slice(2 * lane, 2 * lane + 2)
            lane_values = {name: tensor[lane] for name, tensor in values.items()}
            low = torch.relu(captured["r"][rows] @ lane_values["down.weight"].T + lane_values["down.bias"])
            expected = captured["before"][rows] + 0.3 * (low @ lane_values["up.weight"].T + lane_values["up.bias"])
            torch.testing.assert_close(captured["after"][rows], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_beside_the_mlp_names_and_sizes_are_those_behind_it(shared: bool):
    behind, beside = (applied(Adapter(shared=shared, placement=place))[1] for place in ("sequential", "parallel"))
    assert behind.tensors == beside.tensors


def test_beside_the_mlp_nothing_of_a_pass_is_left():
    backbone, _ = applied(Adapter(placement="parallel"))
    backbone.logits(tiny_inputs("vit", 2).tensors)
    taps = [module.tap for module in backbone.module.modules() if isinstance(module, Adapted)]
    assert len({id(tap) for tap in taps}) == 2
    for tap in taps:
        with pytest.raises(RuntimeError, match="the last layer of an MLP ran before the layer that reads its input"):
            tap.take()


def test_a_model_whose_mlp_is_entered_at_an_unknown_place_takes_no_adapter_beside_it():
    backbone = tiny_backbone()
    unknown = replace(backbone, anatomy=replace(backbone.anatomy, mlp_input=""))
    with pytest.raises(ModelError, match="it is not known where its MLPs read the residual stream"):
        Adapter(placement="parallel").apply(unknown, Lanes(1), stream(0))


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


def test_blocks_of_one_width_share_an_adapter_and_others_have_their_own():
    source = ModelSource(architecture=small.architecture("swin"))  # stages of 16, 32, 32 and 64 features
    backbone = build(source, ("a", "b"), seed=0, device="meta")
    spec = Adapter(reduction_factor=8).apply(backbone, Lanes(1), stream(0))
    assert {name: tensor.shape for name, tensor in spec.tensors.items() if name.endswith("down.weight")} == {
        "swin.encoder.layers.0.blocks.0.mlp.fc2.adapter.down.weight": (2, 16),
        "swin.encoder.layers.1.blocks.0.mlp.fc2.adapter.down.weight": (4, 32),
        "swin.encoder.layers.2.blocks.0.mlp.fc2.adapter.down.weight": (8, 64),
    }
