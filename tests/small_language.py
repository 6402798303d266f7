"""Small language models with a tokenizer of their own, and dialogues about a few animals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ANIMALS = ("dog", "cat", "hen", "cow", "fox", "owl")
SOUNDS = ("woofs", "meows", "clucks", "moos", "yelps", "hoots")
COMMON = {"vocab_size": 320, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_GROUPED = {**_WIDE, "num_key_value_heads": 2}
# `model_type` to the sizes of a small network of the family.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
    "gemma": {**_GROUPED, "head_dim": 8},
    "gemma2": {**_GROUPED, "head_dim": 8},
    "gemma3_text": {**_GROUPED, "head_dim": 8},
    "smollm3": _GROUPED,
    "phi": _GROUPED,
    "phi3": _GROUPED,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": _WIDE,
    "opt": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32
    },
    "olmo2": _GROUPED,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "cohere": _GROUPED,
    "mixtral": {**_GROUPED, "num_local_experts": 4},
}  # fmt: skip


def small_tokenizer(*, has_pad: bool = False, has_eos: bool = True) -> Any:
    """A byte-level tokenizer of 320 tokens, made from the dialogues."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{row['prompt']} {row['response']}" for row in dialogues(60)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>" if has_eos else None,
        pad_token="<pad>" if has_pad else None,
    )


def small_network(family: str = "llama", seed: int = 0, **fields: Any) -> Any:
    """A network of a family with random weights, large enough that each layer matters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **(COMMON | FAMILIES[family] | fields))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(config)
        for parameter in network.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return network.eval()


def write_model(
    folder: Path, family: str = "llama", *, has_pad: bool = False, has_eos: bool = True, **fields: Any
) -> Path:
    """A directory of transformers with a small model and its tokenizer."""
    from fedelta.models.weights import quiet_transformers

    with quiet_transformers():
        small_network(family, **fields).save_pretrained(folder)
    small_tokenizer(has_pad=has_pad, has_eos=has_eos).save_pretrained(folder)
    return folder


def dialogues(num: int) -> list[dict[str, str]]:
    """Questions about animals with their answers, of six clients."""
    return [
        {
            "prompt": f"What does the {'old ' * (number % 4)}{ANIMALS[number % 6]} do?",
            "response": f"The {ANIMALS[number % 6]} {SOUNDS[number % 6]}{' loudly' * (number % 3)}.",
            "client": f"farm {number % 6}",
        }
        for number in range(num)
    ]


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def small_config(model: Path, table: Path, more: str = "") -> str:
    """A configuration of two rounds with LoRA."""
    return f"""
seed = 1

[model]
source = "{model}"

[data]
source = "{table}"
client_column = "client"
max_length = 48

[task]
name = "language"
num_answers = 3
max_new_tokens = 4

[partition]
name = "natural"

[tuning]
name = "lora"
r = 2

[strategy]
clients_per_round = 3
num_rounds = 2

[client]
batch_size = 4
local_steps = 2
lr = 0.05
{more}"""
