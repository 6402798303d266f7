"""Attention and blocks of families that no table describes, found by structure."""

from __future__ import annotations

import pytest
import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn

from benchmarks import small
from fedelta.models.discovery import discover
from fedelta.models.hub import Backbone, build
from fedelta.models.layers import is_linear
from fedelta.models.source import ModelSource
from fedelta.tuning.lora import Lora

# PEFT takes the MLP of Phi too; the others of its table have no classifier of texts or images.
OF_PEFT = sorted((set(small.families()) & PEFT_TARGETS.keys()) - {"phi"})


def skeleton(family: str) -> Backbone:
    return build(ModelSource(architecture=small.architecture(family)), ("a", "b"), seed=0, device="meta")


class Attention(nn.Module):
    def __init__(self, names: tuple[str, ...], width: int = 4) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(width, width))


class Block(nn.Module):
    def __init__(self, *names: str, inner: int = 8) -> None:
        super().__init__()
        self.attn = Attention(names or ("q_proj", "k_proj", "v_proj", "o_proj"))
        self.fc1, self.fc2 = nn.Linear(4, inner), nn.Linear(8, 4)


class Tower(nn.Module):
    def __init__(self, *blocks: nn.Module, takes: str = "input_ids") -> None:
        super().__init__()
        self.main_input_name = takes
        self.layers = nn.ModuleList(blocks)


@pytest.mark.parametrize("family", OF_PEFT)
def test_the_layers_are_those_of_pefts_own_table(family: str):
    backbone = skeleton(family)
    linear = [path for path, layer in backbone.module.named_modules() if is_linear(layer)]
    expected = [path for path in linear if path.rpartition(".")[2] in PEFT_TARGETS[family]]
    assert expected
    assert Lora().targets(backbone) == expected


@pytest.mark.parametrize(
    ("family", "blocks", "fc2"),
    [
        ("llama", "model.layers", "mlp.down_proj"),
        ("gpt2", "transformer.h", "mlp.c_proj"),
        ("swin", "swin.encoder.layers.*.blocks", "mlp.fc2"),
        ("albert", "albert.encoder.albert_layer_groups.*.albert_layers", "ffn_output"),
        ("gemma3", "model.language_model.layers", "mlp.down_proj"),
        ("modernbert", "model.layers", "mlp.Wo"),
    ],
)
def test_blocks_and_the_last_layer_of_their_mlp(family: str, blocks: str, fc2: str):
    anatomy = skeleton(family).anatomy
    assert (anatomy.blocks, anatomy.roles["fc2"]) == (blocks, fc2)
    assert all(path.endswith(f".{fc2}") for path in anatomy.layers["fc2"])


def test_a_block_is_found_with_its_roles():
    discovery = discover(Tower(Block(), Block()))
    assert discovery.blocks == "layers"
    assert discovery.roles == {
        "q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.o_proj", "fc1": "fc1", "fc2": "fc2",
    }  # fmt: skip
    assert discovery.layers["v"] == ("layers.0.attn.v_proj", "layers.1.attn.v_proj")


def test_a_layer_that_is_query_key_and_value_plays_all_three():
    discovery = discover(Tower(Block("qkv"), Block("qkv")))
    assert {discovery.roles[role] for role in "qkv"} == {"attn.qkv"}
    assert discovery.layers["q"] == ("layers.0.attn.qkv", "layers.1.attn.qkv")


def test_what_could_be_two_attentions_is_none():
    discovery = discover(Tower(Block("q_proj", "k_proj", "v_proj", "qkv")))
    assert (discovery.blocks, discovery.layers) == ("", {})


def test_an_attention_outside_a_list_of_blocks_is_none():
    assert discover(Block()).layers == {}


def test_an_mlp_whose_layers_do_not_fit_is_none():
    discovery = discover(Tower(Block(inner=6), Block(inner=6)))  # 6 is neither 8 nor, with a gate, 16
    assert (discovery.blocks, discovery.roles) == ("", {})
    assert len(discovery.layers["q"]) == 2
    assert discover(Tower(Block(inner=16), Block(inner=16))).roles["fc1"] == "fc1"


def test_blocks_in_two_lists_are_no_blocks_and_their_attention_is_found():
    both = nn.Module()
    both.encoder, both.decoder = Tower(Block()), Tower(Block())
    discovery = discover(both)
    assert (discovery.blocks, len(discovery.layers["q"])) == ("", 2)


def test_a_block_with_two_attentions_makes_its_list_none():
    decoder = Block()
    decoder.cross = Attention(("q_proj", "k_proj", "v_proj"))
    discovery = discover(Tower(Block(), decoder))
    assert (discovery.blocks, len(discovery.layers["q"])) == ("", 3)


@pytest.mark.parametrize(("takes", "number"), [("input_ids", 3), ("pixel_values", 2)])
def test_a_tower_for_another_kind_of_input_is_passed_over(takes: str, number: int):
    whole = Tower(Block(), Block())
    whole.tower = Tower(Block(), takes=takes)
    assert len(discover(whole).layers["q"]) == number


def test_a_layer_that_only_derives_from_pytorchs_is_no_projection():
    class Halved(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 2

    block = Block()
    block.attn.v_proj = Halved(4, 4)
    assert discover(Tower(block)).layers == {}
