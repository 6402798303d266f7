"""LoRA: the pair by hand, and which layers get one."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from tests.builders import TRANSFORMERS, assert_same_bits, tiny_backbone
from tests.small_language import small_network
from torch import nn, tensor
from transformers.pytorch_utils import Conv1D

from benchmarks import small
from fedelta.errors import ModelError
from fedelta.models.anatomy import Anatomy
from fedelta.models.decoders import decoder_of
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.models.vocabulary import vocabulary_of
from fedelta.seeds import stream
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora, LoraLinear

ROLES = ("q", "k", "v", "o", "fc1", "fc2")


def apply(method: Lora, family: str = "vit") -> tuple[Backbone, list[str]]:
    backbone = tiny_backbone(family)
    spec = method.apply(backbone, Lanes(1), stream(0))
    return backbone, list(spec)


def pair(lanes: int = 2, scale: float = 0.5) -> LoraLinear:
    """I = 2, O = 2, R = 1; W is the identity, b = (1, 0)."""
    base = nn.Linear(2, 2)
    with torch.no_grad():
        base.weight.copy_(torch.eye(2))
        base.bias.copy_(tensor([1.0, 0.0]))
        layer = LoraLinear(Lanes(lanes), base, 1, scale, generator=stream(0))
        layer.lora_A[0], layer.lora_B[0] = tensor([[2.0, 1.0]]), tensor([[1.0], [-2.0]])
        if lanes > 1:
            layer.lora_A[1], layer.lora_B[1] = tensor([[0.0, 4.0]]), tensor([[1.0], [1.0]])
    return layer


def test_each_lane_adds_its_own_low_rank_product():
    # x = (3, 1), W x + b = (4, 1).
    # lane 0: A x = 2 * 3 + 1 = 7, 0.5 * B * 7 = (3.5, -7), y = (7.5, -6)
    # lane 1: A x = 4 * 1 = 4, 0.5 * B * 4 = (2, 2), y = (6, 3)
    assert pair()(tensor([[3.0, 1.0], [3.0, 1.0]])).tolist() == [[7.5, -6.0], [6.0, 3.0]]


def test_merging_adds_the_product_of_lane_zero_to_the_weight():
    # 0.5 * B A = 0.5 * ((2, 1), (-4, -2)) = ((1, 0.5), (-2, -1)), added to the identity
    merged = pair().merged()
    assert type(merged) is nn.Linear
    assert merged.weight.tolist() == [[2.0, 0.5], [-2.0, 0.0]]
    assert merged.bias.tolist() == [1.0, 0.0]


def test_a_pair_beside_a_layer_whose_weight_is_the_other_way_round():
    # GPT-2's Conv1D computes x W + b with W [I, O] = ((1, 0, 0), (0, 1, 0)), so I = 2, O = 3; b = (1, 0, 0).
    base = Conv1D(3, 2)
    with torch.no_grad():
        base.weight.copy_(torch.eye(2, 3))
        base.bias.copy_(tensor([1.0, 0.0, 0.0]))
        layer = LoraLinear(Lanes(1), base, 1, 0.5, generator=stream(0))
        layer.lora_A[0], layer.lora_B[0] = tensor([[2.0, 1.0]]), tensor([[1.0], [-2.0], [4.0]])
    # x = (3, 1): x W + b = (4, 1, 0), A x = 7, 0.5 * B * 7 = (3.5, -7, 14)
    assert layer(tensor([[3.0, 1.0]])).tolist() == [[7.5, -6.0, 14.0]]
    assert layer.merged() is base
    # 0.5 * (B A)^T = 0.5 * ((2, -4, 8), (1, -2, 4))
    assert base.weight.tolist() == [[2.0, -2.0, 4.0], [0.5, 0.0, 2.0]]


def test_a_starts_uniform_within_one_over_the_root_of_its_inputs_and_b_at_zero():
    backbone, _ = apply(Lora(r=8, target_modules="all-linear"))
    for layer in backbone.module.modules():
        if isinstance(layer, LoraLinear):
            bound = 1 / math.sqrt(layer.lora_A.shape[-1])
            assert layer.lora_B.abs().max() == 0
            assert 0.8 * bound < layer.lora_A.abs().max() <= bound
            assert abs(layer.lora_A.mean()) < 0.2 * bound


def test_the_generator_decides_about_a_alone():
    original, repeated = apply(Lora())[0].module.state_dict(), apply(Lora())[0].module.state_dict()
    assert_same_bits(original, repeated)
    reseeded = tiny_backbone("vit")
    Lora().apply(reseeded, Lanes(1), stream(1))
    assert {
        name for name, tensor in reseeded.module.state_dict().items() if not torch.equal(tensor, original[name])
    } == {f"vit.layers.{block}.attention.{role}_proj.lora_A" for block in (0, 1) for role in "qv"}


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_one_layer_in_every_block(family: str, role: str):
    backbone = tiny_backbone(family)
    anatomy = backbone.anatomy
    expected = [f"{anatomy.blocks}.{block}.{anatomy.roles[role]}" for block in (0, 1)]
    assert Lora(target_modules=(role,)).targets(backbone) == expected


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_all_linear_is_every_role_of_every_block(family: str):
    # 2 blocks of 6 layers; pooler and head are outside of the blocks.
    backbone = tiny_backbone(family)
    everything = Lora(target_modules="all-linear").targets(backbone)
    assert len(everything) == 12
    assert everything == Lora(target_modules=ROLES).targets(backbone)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("mlp.fc1", ["vit.layers.0.mlp.fc1", "vit.layers.1.mlp.fc1"]),
        ("q_proj", ["vit.layers.0.attention.q_proj", "vit.layers.1.attention.q_proj"]),
        ("layers.1.mlp.fc2", ["vit.layers.1.mlp.fc2"]),
        ("vit.layers.0.attention.o_proj", ["vit.layers.0.attention.o_proj"]),
    ],
)
def test_a_module_name_matches_a_full_path_or_its_last_parts(entry: str, expected: list[str]):
    assert Lora(target_modules=(entry,)).targets(tiny_backbone("vit")) == expected


def test_entries_that_overlap_give_one_pair_a_layer_in_the_order_of_the_model():
    targets = Lora(target_modules=("layers.1.mlp.fc1", "fc1", "q")).targets(tiny_backbone("vit"))
    assert targets == [
        "vit.layers.0.attention.q_proj",
        "vit.layers.0.mlp.fc1",
        "vit.layers.1.attention.q_proj",
        "vit.layers.1.mlp.fc1",
    ]


def test_half_a_name_matches_nothing_and_the_nearest_is_named():
    with pytest.raises(ModelError) as caught:
        apply(Lora(target_modules=("q", "q_pro")))
    assert caught.value.message == (
        "`tuning.target_modules` entry 'q_pro' matches no linear or convolutional layer of ViTForImageClassification; "
        "did you mean 'q_proj'?"
    )
    assert caught.value.hint == (
        "roles of this model: q, k, v, o, fc1, fc2; module names: fc1, fc2, k_proj, o_proj, projection, q_proj, v_proj."
    )


def test_a_family_without_roles_is_tuned_by_module_names():
    module = nn.Sequential()
    module.body, module.head = nn.Linear(2, 3), nn.Linear(3, 2)
    backbone = Backbone(module, Anatomy(("head",)))
    assert Lora(target_modules="all-linear").targets(backbone) == ["body"]
    with pytest.raises(ModelError, match="roles of this model: none; module names: body"):
        Lora().targets(backbone)


def test_without_attention_every_convolution_gets_a_pair_and_the_log_says_so(caplog: pytest.LogCaptureFixture):
    backbone = tiny_backbone("resnet")
    convolutions = [path for path, layer in backbone.module.named_modules() if isinstance(layer, nn.Conv2d)]
    assert Lora().targets(backbone) == convolutions
    Lora(r=1).apply(backbone, Lanes(1), stream(0))
    assert f"the {len(convolutions)} with a low-rank pair are convolutions, as it has no attention" in caplog.text


def test_the_log_says_which_layers_of_a_family_without_a_table_have_a_pair(caplog: pytest.LogCaptureFixture):
    source = ModelSource(architecture=small.architecture("llama"))
    Lora(r=1).apply(build(source, ("a", "b"), seed=0, device="meta"), Lanes(1), stream(0))
    assert (
        "the layers of LlamaForSequenceClassification are not described in fedelta: the 4 with a low-rank pair were "
        "found by their structure: `model.layers.*.self_attn.q_proj`, `model.layers.*.self_attn.v_proj`. Name others "
        "in `tuning.target_modules`."
    ) in caplog.text


def test_a_family_that_is_described_has_pairs_at_queries_and_values_without_a_word(caplog: pytest.LogCaptureFixture):
    apply(Lora(r=1))
    assert Lora().targets(tiny_backbone()) == Lora(target_modules=("q", "v")).targets(tiny_backbone())
    assert caplog.text == ""


def test_layers_that_share_a_weight_get_no_pair():
    module = nn.Sequential()
    module.one, module.two, module.head = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    module.two.weight = module.one.weight
    with pytest.raises(ModelError, match="`one` and `two` of Sequential share one weight"):
        Lora(r=1, target_modules=("two",)).apply(Backbone(module, Anatomy(("head",))), Lanes(1), stream(0))


def test_rank_and_alpha_of_single_layers_follow_the_patterns():
    method = Lora(r=4, lora_alpha=8, rank_pattern={"layers.1.attention.q_proj": 2}, alpha_pattern={"v_proj": 2.0})
    backbone, _ = apply(method)
    ranks_and_scales = {
        path: (layer.lora_A.shape[1], layer.scale)
        for path, layer in backbone.module.named_modules()
        if isinstance(layer, LoraLinear)
    }
    assert ranks_and_scales == {
        "vit.layers.0.attention.q_proj": (4, 8 / 4),
        "vit.layers.0.attention.v_proj": (4, 2 / 4),
        "vit.layers.1.attention.q_proj": (2, 8 / 2),
        "vit.layers.1.attention.v_proj": (4, 2 / 4),
    }


def test_a_pattern_may_name_a_role():
    # In BERT `output.dense`, which is fc2, also ends the path of o.
    backbone, _ = apply(Lora(r=4, target_modules=("o", "fc2"), rank_pattern={"fc2": 2}), "bert")
    ranks = {
        path.removeprefix("bert.encoder.layer."): layer.lora_A.shape[1]
        for path, layer in backbone.module.named_modules()
        if isinstance(layer, LoraLinear)
    }
    assert ranks == {
        "0.attention.output.dense": 4,
        "0.output.dense": 2,
        "1.attention.output.dense": 4,
        "1.output.dense": 2,
    }


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_names_no_tuned_layer_is_refused(field: str):
    # k exists but is not tuned.
    with pytest.raises(ModelError, match=rf"`tuning.{field}` entry 'k' matches no tuned layer of ViT"):
        apply(Lora(target_modules=("q", "v"), **{field: {"k": 2}}))


def test_rank_stabilised_lora_divides_by_the_root_of_the_rank():
    backbone, _ = apply(Lora(r=4, lora_alpha=8, use_rslora=True))
    assert backbone.module.get_submodule("vit.layers.0.attention.q_proj").scale == 8 / 2


def test_the_specification_lists_pairs_first_and_the_head_last():
    _, names = apply(Lora(target_modules=("layers.0.mlp.fc1",)))
    assert names == [
        "vit.layers.0.mlp.fc1.lora_A",
        "vit.layers.0.mlp.fc1.lora_B",
        "classifier.weight",
        "classifier.bias",
    ]


def test_the_head_can_stay_as_it_is():
    backbone, names = apply(Lora(train_head=False))
    assert not [name for name in names if name.startswith("classifier")]
    assert type(backbone.module.classifier) is nn.Linear
    assert not backbone.module.classifier.weight.requires_grad


def language_model(family: str = "llama") -> Backbone:
    network = small_network(family)
    return Backbone(network, decoder_of(network, family), vocabulary=vocabulary_of(network))


def test_a_language_model_has_no_head_that_could_be_trained():
    with pytest.raises(ModelError) as caught:
        Lora(train_head=True).apply(language_model(), Lanes(1), stream(0))
    assert caught.value.message == (
        "`tuning.train_head` is true, but LlamaForCausalLM is a language model: it has no head but its output "
        "embedding, which is not tuned."
    )
    assert caught.value.hint == "leave it out."
    assert all("lora" in name for name in Lora().apply(language_model(), Lanes(1), stream(0)))


def test_experts_that_get_no_pair_are_told_with_the_share_that_is_reached(caplog: pytest.LogCaptureFixture):
    Lora(r=2, target_modules="all-linear").apply(language_model("mixtral"), Lanes(1), stream(0))
    # Of each block q, o (32 x 32), k and v (16 x 32), and 4 experts of 96 x 32 and 32 x 48: 3072 of 21504.
    assert (
        "low-rank pairs reach 14% of the matrices of MixtralForCausalLM only: "
        "'model.layers.*.mlp.experts.gate_up_proj', 'model.layers.*.mlp.experts.down_proj', such as the experts"
    ) in caplog.text
    caplog.clear()
    Lora(r=2, target_modules="all-linear").apply(language_model(), Lanes(1), stream(0))
    assert "low-rank pairs reach" not in caplog.text


def test_a_rank_above_the_size_of_a_layer_is_refused():
    with pytest.raises(ModelError) as caught:
        apply(Lora(r=17))
    assert caught.value.message == "rank 17 is too large for `vit.layers.0.attention.q_proj`, whose size is 16 x 16."
    assert caught.value.hint == "use `tuning.r` of at most 16."


@pytest.mark.parametrize("field", [{"r": 0}, {"lora_alpha": 0.0}, {"target_modules": ()}, {"rank_pattern": {"q": 0}}])
def test_impossible_values_are_refused(field: dict[str, object]):
    with pytest.raises(ValidationError, match=next(iter(field))):
        Lora(**field)
