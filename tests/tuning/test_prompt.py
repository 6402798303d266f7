"""Prompts: where they stand, what sees them, and their dropout."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from tests.builders import TRANSFORMERS, tiny_backbone, tiny_inputs
from torch import Tensor, nn

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.params import ParamSpec
from fedelta.seeds import stream
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.prompt import Prompt, Prompted


def applied(method: Prompt, family: str = "vit", lanes: int = 1) -> tuple[Backbone, Lanes, ParamSpec]:
    backbone, shared = tiny_backbone(family), Lanes(lanes)
    return backbone, shared, method.apply(backbone, shared, stream(0))


class Tokens(nn.Module):
    """A block that only keeps what it was given."""

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.seen, self.mask = x, attention_mask
        return x


def test_each_lane_reads_its_own_prompts_behind_its_tokens_and_drops_them():
    lanes, block = Lanes(2), Tokens()
    layer = Prompted(lanes, block, torch.zeros(1, 2), num_prompts=1, drops=True, dropout=0.0)
    with torch.no_grad():
        layer.prompt.copy_(torch.tensor([[[7.0, 7.0]], [[8.0, 8.0]]]))
    x = torch.arange(8.0).view(4, 1, 2)  # two samples in each lane, one token each
    assert torch.equal(layer(x), x)
    assert block.seen[:, 0].tolist() == x[:, 0].tolist()
    assert block.seen[:, 1, 0].tolist() == [7.0, 7.0, 8.0, 8.0]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_a_mask_is_widened_so_that_prompts_are_always_seen(kind: torch.dtype, rows: int):
    # The second of three tokens is padding: False, or minus infinity to be added.
    lanes, block = Lanes(1), Tokens()
    row = torch.tensor([True, False, True]) if kind == torch.bool else torch.tensor([0.0, -math.inf, 0.0])
    attended = True if kind == torch.bool else 0.0
    layer = Prompted(lanes, block, torch.zeros(2, 4), num_prompts=2, drops=True, dropout=0.0)
    layer(torch.zeros(1, 3, 4), row.expand(1, 1, rows, 3))
    assert block.mask.shape == (1, 1, 1 if rows == 1 else 5, 5)
    assert all(mask_row.tolist() == [*row.tolist(), attended, attended] for mask_row in block.mask[0, 0])


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_the_output_of_a_prompted_model_is_that_of_the_equations(family: str, depth: str):
    """Eq. 4 to 7, written out with the model's own blocks and no padding."""
    backbone, _, spec = applied(Prompt(num_virtual_tokens=3, depth=depth), family)
    untouched = tiny_backbone(family)
    name = next(iter(tiny_inputs(family, 1).tensors))
    inputs = {name: tiny_inputs(family, 2).tensors[name]}
    if name == "input_ids":
        inputs = {name: inputs[name][:, :3]}  # no padding, so no mask
    prompts = [backbone.module.get_parameter(name)[0] for name in spec if name.endswith(".prompt")]
    assert len(prompts) == (2 if depth == "deep" else 1)
    blocks = untouched.module.get_submodule(untouched.anatomy.blocks)

    def with_prompts(index: int, x: Tensor) -> Tensor:
        if depth == "shallow" and index > 0:
            return x
        return torch.cat([x, prompts[index].expand(x.shape[0], -1, -1)], dim=1)

    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda _, args, index=index: (with_prompts(index, args[0]), *args[1:]))
        if depth == "deep" or index == len(blocks) - 1:
            block.register_forward_hook(lambda _, args, y: y[:, :-3])
    with torch.no_grad():
        torch.testing.assert_close(backbone.logits(inputs), untouched.logits(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_padding_stays_unseen(family: str, depth: str):
    backbone, _, _ = applied(Prompt(num_virtual_tokens=2, depth=depth), family)
    tokens = torch.tensor([[5, 6, 7]])
    padded = {"input_ids": torch.tensor([[5, 6, 7, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}
    with torch.no_grad():
        alone = backbone.logits({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
        torch.testing.assert_close(backbone.logits(padded), alone, rtol=1e-4, atol=1e-5)


def test_eager_attention_takes_prompts_too():
    results = []
    for implementation in ("sdpa", "eager"):
        backbone = tiny_backbone("bert")
        backbone.module.set_attn_implementation(implementation)
        Prompt(num_virtual_tokens=2).apply(backbone, Lanes(1), stream(0))
        with torch.no_grad():
            results.append(backbone.logits(tiny_inputs("bert", 4).tensors))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_prompts_start_uniform_within_the_bound_of_vpt():
    # Tiny ViT: patches of 4 x 4 x 3 = 48 numbers, width 16: sqrt(6 / (48 + 16)).
    # FedPEFT: sqrt(6 / (768 + 768)) = 0.0625.
    backbone, _, spec = applied(Prompt(num_virtual_tokens=40))
    for name in spec:
        if name.endswith(".prompt"):
            values = backbone.module.get_parameter(name)
            assert 0.95 * math.sqrt(6 / 64) < values.abs().max() <= math.sqrt(6 / 64)


def test_text_models_have_no_patches_and_a_bound_of_their_width():
    backbone, _, spec = applied(Prompt(num_virtual_tokens=40), "bert")
    assert backbone.module.get_parameter(spec.names[0]).abs().max() <= math.sqrt(6 / 32)


def test_names_and_groups():
    _, _, spec = applied(Prompt(num_virtual_tokens=3))
    assert {name: tensor.shape for name, tensor in spec.tensors.items() if "prompt" in name} == {
        "vit.layers.0.prompt": (3, 16),
        "vit.layers.1.prompt": (3, 16),
    }
    assert list(spec.groups) == ["vit.layers.0", "vit.layers.1", "classifier"]


def test_dropout_is_drawn_per_lane_and_scales_what_is_left():
    lanes = Lanes(2)
    ones = torch.ones(4, 50, 40)
    with lanes.training([2, 2], [stream(1), stream(2)]):
        dropped = lanes.dropout(ones, 0.25)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    # 4,000 draws with standard deviation sqrt(0.25 * 0.75 / 4000) = 0.007
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    alone = Lanes(1)
    with alone.training([2], [stream(2)]):
        assert torch.equal(alone.dropout(ones[:2], 0.25), dropped[2:])
    assert lanes.dropout(ones, 0.25) is ones  # not training


def test_dropout_changes_training_and_not_evaluation():
    backbone, lanes, _ = applied(Prompt(num_virtual_tokens=5, dropout=0.5))
    inputs = tiny_inputs("vit", 2).tensors
    with torch.no_grad():
        with lanes.training([2], [stream(1)]):
            trained = backbone.logits(inputs)
        assert torch.equal(backbone.logits(inputs), backbone.logits(inputs))
        assert not torch.allclose(trained, backbone.logits(inputs), atol=1e-4)


@pytest.mark.parametrize("family", ["small-resnet", "resnet"])
def test_a_convolutional_network_is_refused(family: str):
    with pytest.raises(ModelError, match=r"tuning method 'prompt' does not fit .*ResNet.*no blocks of tokens"):
        applied(Prompt(), family)


def test_a_family_with_relative_positions_is_refused():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    source = ModelSource(architecture={"model_type": "beit", "image_size": 32, "patch_size": 16, **sizes})
    backbone = build(source, ("a", "b"), seed=0, device="meta")
    with pytest.raises(ModelError, match="its attention needs the position of every token") as caught:
        Prompt().apply(backbone, Lanes(1), stream(0))
    assert caught.value.hint == "use 'adapter' or 'lora' for this model."


@pytest.mark.parametrize("field", [{"num_virtual_tokens": 0}, {"dropout": 1.0}, {"depth": "medium"}])
def test_impossible_values_are_refused(field: dict[str, object]):
    with pytest.raises(ValidationError, match=next(iter(field))):
        Prompt(**field)
