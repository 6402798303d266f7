"""Where the parts of a model are, checked against real models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from benchmarks import small
from fedelta.errors import ModelError
from fedelta.models.anatomy import ANATOMIES, Anatomy, anatomy_of
from fedelta.models.hub import build
from fedelta.models.source import ModelSource

DESCRIBED = [family for family, anatomy in ANATOMIES.items() if anatomy.roles and family != "siglip2"]  # hub refuses it


@pytest.mark.parametrize("family", DESCRIBED)
def test_every_family_with_roles_is_laid_out_as_the_table_says(family: str):
    source = ModelSource(architecture=small.architecture(family))
    module = build(source, ("a", "b"), seed=0, device="meta").module
    anatomy = anatomy_of(module, family)
    assert anatomy is ANATOMIES[family]
    assert len(module.get_submodule(anatomy.blocks)) == 2
    assert sorted(anatomy.roles) == ["fc1", "fc2", "k", "o", "q", "v"]
    # DeBERTa has one layer for queries, keys and values.
    is_fused = anatomy.roles["q"] == anatomy.roles["v"]
    for block in module.get_submodule(anatomy.blocks):
        layers = {role: block.get_submodule(path) for role, path in anatomy.roles.items()}
        assert all(isinstance(layer, nn.Linear) for layer in layers.values())
        assert len(set(layers.values())) == (4 if is_fused else 6)
        # fc1 widens and fc2 narrows; the others keep the width.
        shapes = {role: (layer.in_features, layer.out_features) for role, layer in layers.items()}
        assert (shapes["fc1"][0], shapes["fc2"][1]) == (32, 32)
        assert shapes["fc1"][1] == shapes["fc2"][0] > 32
        assert {shapes[role] for role in "qkv"} == {(32, 96 if is_fused else 32)}
        assert shapes["o"] == (32, 32)


@pytest.mark.parametrize(
    ("path", "role", "plays"),
    [
        ("vit.layers.1.mlp.fc2", "fc2", True),
        ("vit.layers.1.mlp.fc2", "fc1", False),
        ("vit.layers.1.other.mlp.fc2", "fc2", False),
        ("other.vit.layers.1.mlp.fc2", "fc2", False),
        ("found.somewhere", "q", True),
        ("found.somewhere", "v", False),
    ],
)
def test_a_layer_plays_a_role_by_its_whole_path(path: str, role: str, plays: bool):
    anatomy = replace(ANATOMIES["vit"], layers={"q": ("found.somewhere",)})
    assert anatomy.plays(path, role) is plays


def test_blocks_of_stages_are_distinguished_by_number():
    anatomy = Anatomy(("head",), blocks="encoder.layers.*.blocks", roles={"fc2": "mlp.fc2"})
    assert anatomy.block_of("encoder.layers.2.blocks.0.mlp.fc2") == ("encoder.layers.2.blocks.0", "mlp.fc2")
    assert anatomy.block_of("encoder.layers.2.blocks.0") == ("encoder.layers.2.blocks.0", "")
    assert anatomy.block_of("encoder.layers.2.downsample") is None
    assert anatomy.plays("encoder.layers.0.blocks.1.mlp.fc2", "fc2")


@pytest.mark.parametrize(
    ("family", "head", "prompts", "exits"),
    [
        ("llama", ("score",), "only looks back", "from the last token"),
        ("modernbert", ("head", "classifier"), "fedelta does not know", "fedelta does not know"),
        ("xlnet", ("sequence_summary", "logits_proj"), "", "no class token"),
    ],
)
def test_the_head_of_a_family_without_a_table_is_what_lies_outside_of_the_base_model(
    family: str, head: tuple[str, ...], prompts: str, exits: str
):
    source = ModelSource(architecture=small.architecture(family))
    anatomy = build(source, ("a", "b"), seed=0, device="meta").anatomy
    assert anatomy.head == head
    assert prompts in anatomy.no_prompts
    assert exits in anatomy.no_exits


@pytest.mark.parametrize("head", ["classifier", "score", "classification_head", "head"])
def test_an_unknown_family_keeps_its_head_under_a_usual_name(head: str):
    module = nn.Module()
    module.body, module.other = nn.Linear(2, 2), nn.Linear(2, 2)
    setattr(module, head, nn.Linear(2, 2))
    assert anatomy_of(module, "mine") == Anatomy((head,))


def test_classifier_comes_before_head():
    module = nn.Module()
    module.head, module.classifier = nn.Linear(2, 2), nn.Linear(2, 2)
    assert anatomy_of(module, "mine").head == ("classifier",)


def test_an_unknown_family_without_a_usual_head_is_refused():
    module = nn.Module()
    module.body, module.top = nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(ModelError) as caught:
        anatomy_of(module, "mine")
    assert caught.value.message == (
        "no head found in a model of the unknown family 'mine': expected one of ['classifier', 'score', "
        "'classification_head', 'head'], found only ['body', 'top']."
    )
    assert "pass `Backbone(module, Anatomy(...))`" in str(caught.value.hint)


def test_a_known_family_that_is_laid_out_differently_is_refused():
    module = nn.Module()
    module.classifier = nn.Linear(2, 2)
    with pytest.raises(
        ModelError, match=r"Module lacks the modules \['vit.embeddings', .*\], expected in family 'vit'"
    ) as caught:
        anatomy_of(module, "vit")
    assert "in constraints.txt" in str(caught.value.hint)
