from __future__ import annotations

import pytest
from tests.small_language import FAMILIES, small_network
from torch import nn

from fedelta.errors import ModelError
from fedelta.models.decoders import DECODERS, decoder_of
from fedelta.models.hub import build
from fedelta.models.layers import is_linear, matrix_shape
from fedelta.models.source import ModelSource
from fedelta.tasks.language import Language


@pytest.mark.parametrize("family", sorted(DECODERS))
def test_every_role_of_a_family_is_a_linear_layer_of_the_size_that_it_should_have(family: str):
    network = small_network(family)
    anatomy = decoder_of(network, family)
    block = network.get_submodule(f"{anatomy.blocks}.0")
    layers = {role: block.get_submodule(path) for role, path in anatomy.roles.items()}
    assert all(map(is_linear, layers.values()))
    shapes = {role: matrix_shape(layer) for role, layer in layers.items()}
    assert shapes["q"][1] == shapes["fc1"][1] == shapes["o"][0] == shapes["fc2"][0] == 32
    assert shapes["fc1"][0] in {shapes["fc2"][1], 2 * shapes["fc2"][1]}
    assert anatomy.head == ()


@pytest.mark.parametrize(("family", "fused"), [("phi3", "self_attn.qkv_proj"), ("gpt2", "attn.c_attn")])
def test_a_fused_projection_has_all_its_roles(family: str, fused: str):
    roles = decoder_of(small_network(family), family).roles
    assert (roles["q"], roles["k"], roles["v"]) == (fused, fused, fused)


def test_a_family_that_is_not_in_the_table_is_found_by_its_structure():
    anatomy = decoder_of(small_network("olmo2"), "olmo2")
    assert (anatomy.blocks, anatomy.roles["q"], anatomy.head) == ("model.layers", "self_attn.q_proj", ())


def test_a_module_that_is_not_where_it_should_be_is_named():
    network = small_network("llama")
    network.model.layers[0].mlp.up_proj = nn.Identity()
    del network.model.layers[0].mlp.down_proj
    with pytest.raises(ModelError, match=r"lacks the modules \['model.layers.0.mlp.down_proj'\], expected in family"):
        decoder_of(network, "llama")


def test_the_small_networks_cover_the_table():
    assert DECODERS.keys() <= FAMILIES.keys()


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_sequence_to_sequence_family_is_refused(family: str):
    source = ModelSource(architecture={"model_type": family})
    with pytest.raises(ModelError, match=f"family '{family}' is sequence to sequence, expected causal language models"):
        build(source, (), seed=0, task=Language(), device="meta")
