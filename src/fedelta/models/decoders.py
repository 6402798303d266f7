"""Where the parts of causal language models are, by family; for other families, by their structure (discovery.py).

A projection that computes several roles at once, such as Phi-3's `qkv_proj`, has all of them. The output embedding is
no head: it belongs to the base, is not tuned, and often is the input embedding too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fedelta.errors import ModelError
from fedelta.models.anatomy import Anatomy

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

_NO_PROMPTS = "its attention only looks back and needs the position of every token"
_NO_EXITS = "it answers from every token, and an exit reads only the first"

_LLAMA = Anatomy(
    (),
    "model.embed_tokens",
    "model.layers",
    {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "fc1": "mlp.up_proj",
        "fc2": "mlp.down_proj",
    },
    no_prompts=_NO_PROMPTS,
    no_exits=_NO_EXITS,
    mlp_input="post_attention_layernorm",
)
_GEMMA_2 = replace(_LLAMA, mlp_input="pre_feedforward_layernorm")
_PHI = replace(
    _LLAMA,
    roles={role: path for role, path in _LLAMA.roles.items() if role in {"q", "k", "v"}}
    | {"o": "self_attn.dense", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    mlp_input="",  # attention and MLP read the same norm
)
_PHI_3 = replace(
    _LLAMA,
    roles={
        **dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj"),
        "o": "self_attn.o_proj",
        **dict.fromkeys(("gate", "fc1"), "mlp.gate_up_proj"),
        "fc2": "mlp.down_proj",
    },
)
_GPT_2 = replace(
    _LLAMA,
    embeddings="transformer.wte",
    blocks="transformer.h",
    roles={
        **dict.fromkeys(("q", "k", "v"), "attn.c_attn"),
        "o": "attn.c_proj",
        "fc1": "mlp.c_fc",
        "fc2": "mlp.c_proj",
    },
    mlp_input="ln_2",
    transposed=True,
)
_GPT_NEOX = replace(
    _LLAMA,
    embeddings="gpt_neox.embed_in",
    blocks="gpt_neox.layers",
    roles={
        **dict.fromkeys(("q", "k", "v"), "attention.query_key_value"),
        "o": "attention.dense",
        "fc1": "mlp.dense_h_to_4h",
        "fc2": "mlp.dense_4h_to_h",
    },
)
_OPT = replace(
    _LLAMA,
    embeddings="model.decoder.embed_tokens",
    blocks="model.decoder.layers",
    roles={
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "fc1": "fc1",
        "fc2": "fc2",
    },
    mlp_input="final_layer_norm",
)

# `model_type` of a transformers configuration to its anatomy. SmolLM and SmolLM2 are of the family "llama".
DECODERS: dict[str, Anatomy] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA_2),
    "phi": _PHI,
    "phi3": _PHI_3,
    "gpt2": _GPT_2,
    "gpt_neox": _GPT_NEOX,
    "opt": _OPT,
}


def check_causal(config: PretrainedConfig) -> None:
    """Refuses a family whose models read a text with an encoder: their causal form would lack half of the weights.

    Raises:
        ModelError: names the family.
    """
    if config.is_encoder_decoder:
        raise ModelError(
            f"family {config.model_type!r} is sequence to sequence, expected causal language models.",
            hint="use a decoder, such as one of the families llama, qwen3, gpt2 or opt.",
        )


def decoder_of(module: nn.Module, family: str) -> Anatomy:
    """The anatomy of a language model, checked against it.

    Args:
        module: with an output embedding.
        family: `model_type` of its configuration.

    Raises:
        ModelError: a part of the table is not where it should be.
    """
    anatomy = DECODERS.get(family) or _discovered(module)
    if not anatomy.blocks:
        return anatomy
    names = {name for name, _ in module.named_modules()}
    parts = (*anatomy.roles.values(), anatomy.mlp_input)
    paths = [anatomy.embeddings, *(f"{anatomy.blocks}.0.{path}" for path in parts if path)]
    if "*" not in anatomy.blocks and (missing := [path for path in paths if path and path not in names]):
        raise ModelError(
            f"{type(module).__name__} lacks the modules {missing}, expected in family {family!r}.",
            hint="install the version of transformers in constraints.txt: this one arranges the family differently.",
        )
    return anatomy


def _discovered(module: nn.Module) -> Anatomy:
    from fedelta.models.discovery import discover  # needs torch, which `fedelta list` does without
    from fedelta.models.layers import is_transposed

    discovery = discover(module)
    layers = [module.get_submodule(path) for paths in discovery.layers.values() for path in paths]
    return Anatomy(
        (),
        blocks=discovery.blocks,
        roles=discovery.roles,
        layers=discovery.layers,
        no_prompts=_NO_PROMPTS,
        no_exits=_NO_EXITS,
        transposed=bool(layers) and all(map(is_transposed, layers)),
    )
