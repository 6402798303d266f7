"""Where the parts of a model are, checked against real models."""

from __future__ import annotations

import pytest
from torch import nn

from fedelta.errors import ModelError
from fedelta.models.anatomy import ANATOMIES, Anatomy, anatomy_of
from fedelta.models.hub import build
from fedelta.models.source import ModelSource

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}


@pytest.mark.parametrize("family", [family for family, anatomy in ANATOMIES.items() if anatomy.roles])
def test_every_family_with_roles_is_laid_out_as_the_table_says(family: str):
    sizes = DISTILBERT if family == "distilbert" else SMALL
    if family == "dinov2":
        sizes = {key: value for key, value in sizes.items() if key != "intermediate_size"}  # it has `mlp_ratio`
    module = build(ModelSource(architecture={"model_type": family} | sizes), ("a", "b"), seed=0, device="meta").module
    anatomy = anatomy_of(module, family)
    assert anatomy is ANATOMIES[family]
    assert len(module.get_submodule(anatomy.blocks)) == 2
    assert sorted(anatomy.roles) == ["fc1", "fc2", "k", "o", "q", "v"]
    for block in module.get_submodule(anatomy.blocks):
        layers = {role: block.get_submodule(path) for role, path in anatomy.roles.items()}
        assert all(isinstance(layer, nn.Linear) for layer in layers.values())
        assert len(set(layers.values())) == 6
        # fc1 widens and fc2 narrows; the others keep the width.
        shapes = {role: (layer.in_features, layer.out_features) for role, layer in layers.items()}
        assert (shapes["fc1"][0], shapes["fc2"][1]) == (16, 16)
        assert shapes["fc1"][1] == shapes["fc2"][0] > 16
        assert {shapes[role] for role in "qkvo"} == {(16, 16)}


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
        "family 'mine' is unknown and has none of ['classifier', 'score', 'classification_head', 'head'] as its head, "
        "only ['body', 'top']."
    )
    assert "pass `Backbone(module, Anatomy(...))`" in str(caught.value.hint)


def test_a_known_family_that_is_laid_out_differently_is_refused():
    module = nn.Module()
    module.classifier = nn.Linear(2, 2)
    with pytest.raises(
        ModelError, match=r"Module lacks \['vit.embeddings', .*\], which family 'vit' should have"
    ) as caught:
        anatomy_of(module, "vit")
    assert "see constraints.txt" in str(caught.value.hint)
