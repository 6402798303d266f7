"""Small text models with a tokenizer of their own, of families that differ in what they do with a text."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

VOCABULARY = 24
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 12,
}
LLAMA = BERT | {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None, "max_position_embeddings": 64}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12, "vocab_size": VOCABULARY}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
BART = {
    "d_model": 16,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 24),
    "max_position_embeddings": 12,
}
_SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
FAMILIES: dict[str, dict[str, object]] = {
    "bert": BERT,
    "roberta": BERT | {"pad_token_id": 0},
    "albert": BERT | {"embedding_size": 8},
    "electra": BERT | {"embedding_size": 8},
    "deberta-v2": BERT | {"pad_token_id": 0},
    "modernbert": BERT | {"pad_token_id": 0, **dict.fromkeys(("eos_token_id", "bos_token_id", "cls_token_id"), 2)},
    "eurobert": BERT | {"num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 2},
    "distilbert": {
        "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "vocab_size": VOCABULARY,
        "max_position_embeddings": 12,
    },
    "xlnet": {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24, "vocab_size": VOCABULARY, "pad_token_id": 0},
    "fnet": {
        "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24, "vocab_size": VOCABULARY,
        "pad_token_id": 0,
    },
    "funnel": {
        "block_sizes": [1, 1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "vocab_size": VOCABULARY,
        "pad_token_id": 0,
    },
    "llama": LLAMA,
    "qwen2": LLAMA,
    "mistral": LLAMA,
    "gemma": LLAMA,
    "phi": LLAMA,
    "gpt2": GPT2,
    "gptj": GPT2 | {"rotary_dim": 4},
    "gpt_neox": BERT | {"pad_token_id": None},
    "opt": BERT | {"ffn_dim": 24, "word_embed_proj_dim": 16, "pad_token_id": 0},
    "gemma3": {
        "text_config": LLAMA | {"model_type": "gemma3_text"},
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 24, "image_size": 16, "patch_size": 8,
        },
        "mm_tokens_per_image": 4,
    },
    "t5": T5 | _SPECIAL,
    "bart": BART | _SPECIAL,
}  # fmt: skip


def config_of(family: str, **changes: object) -> PretrainedConfig:
    """Its configuration at a small size."""
    config: PretrainedConfig = AutoConfig.for_model(family, **(FAMILIES[family] | changes))
    config.architectures = []
    return config


def drawn(auto: type, config: PretrainedConfig) -> nn.Module:
    """A network of `config` in which no two tensors are alike."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = auto.from_config(config)
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Knows some numbers in words, and ends every text with [EOS]."""
    words = ["[PAD]", "[UNK]", "[EOS]", "a", "one", "two", "three", "four", "five", "six", "seven"]
    words += [f"w{number}" for number in range(len(words), VOCABULARY)]
    known = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    known.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=known, unk_token="[UNK]", model_input_names=["input_ids", "attention_mask"], **special
    )


def save(module: nn.Module, path: Path, **special: str) -> Path:
    """A checkpoint at `path`, with a tokenizer whose padding token is [PAD] unless `special` says otherwise."""
    module.save_pretrained(path)
    tokenizer(**special or {"pad_token": "[PAD]", "eos_token": "[EOS]"}).save_pretrained(path)
    return path
