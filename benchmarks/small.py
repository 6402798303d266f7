"""Every family of transformers at a small size, saved as a checkpoint that fedelta opens.

Fields that many families share have one small value each (`SIZES`); what is left of a family's own layout stands in
`OWN`. A family that cannot be built is named in `ELSEWHERE`, with the reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CLASSES = ("a", "b", "c")
VOCABULARY = 128

# Any, in this file: a field of a configuration is a number, a word or a list.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "projection_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads",), 4),
    **dict.fromkeys(("num_key_value_heads", "multi_query_group_num", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "rotary_dim", "d_head", "kv_channels"), 8),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_ff", "hidden_dim"), 48),
    **dict.fromkeys(("ffn_hidden_size", "d_inner", "n_inner", "dff", "mlp_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "v_head_dim", "qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_seq_length"), 64),
    "vocab_size": VOCABULARY,
    "image_size": 32,
    "patch_size": 8,
    "sliding_window": 16,
    # Weights at which a model of width 32 answers differently for different inputs.
    "initializer_range": 0.15,
    "init_std": 0.15,
}

_LATENT = {"num_key_value_heads": 4, "qk_head_dim": 16}
_HYBRID = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
}
# Channels in sixteens: https://github.com/uxlfoundation/oneDNN/issues/6035
_CONVOLUTIONS = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 2, 1]}
_CONVNEXT = {"patch_size": 2, "hidden_sizes": [16, 16, 24, 32], "depths": [1, 1, 2, 1]}
_SWIN = {"patch_size": 2, "embed_dim": 16, "depths": [1, 2, 1], "num_heads": [2, 2, 4], "window_size": 4}
# What a family needs beside the common sizes.
OWN: dict[str, dict[str, Any]] = {
    "axk1": {**_LATENT, "head_dim": 8, "mlp_layer_types": ["dense", "sparse"]},
    "axk2": {
        **_LATENT,
        "head_dim": 8,
        "mlp_layer_types": ["dense", "sparse"],
        "layer_types": ["indexed_attention"] * 2,
        "index_topk": 8,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "gated_norm_rank": 4,
    },
    "bit": {**_CONVOLUTIONS, "num_groups": 4},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * 2,
        "rope_parameters": {"full_attention": {"rope_theta": 10000.0, "rope_type": "default"}},
    },
    "convnext": _CONVNEXT | {"layer_scale_init_value": 0.5},
    "convnextv2": _CONVNEXT,
    "cvt": {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16},
    "deepseek_v2": {**_LATENT, "head_dim": 8, "first_k_dense_replace": 1},
    "deepseek_v3": {**_LATENT, "head_dim": 8, "first_k_dense_replace": 1},
    "donut-swin": _SWIN,
    "efficientnet": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "hidden_dim": 320,
        "image_size": 64,
    },
    "esmc": {"num_key_value_heads": 4},
    "focalnet": {
        "embed_dim": 16,
        "hidden_sizes": [16, 24, 32],
        "depths": [1, 1, 2],
        "patch_size": 4,
        "focal_levels": [1, 1, 1],
        "focal_windows": [3, 3, 3],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "hgnet_v2": {
        "embedding_size": 16,
        "hidden_sizes": [32, 32, 64, 64],
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 32, 32, 64],
        "stage_mid_channels": [16, 16, 16, 16],
        "stage_out_channels": [32, 32, 64, 64],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [2, 2, 2, 2],
    },
    "hiera": {
        "image_size": [32, 32],
        "embed_dim": 16,
        "depths": [1, 1, 2],
        "num_heads": [1, 2, 4],
        "num_query_pool": 2,
        "patch_size": [3, 3],
        "patch_stride": [2, 2],
        "patch_padding": [1, 1],
        "masked_unit_size": [4, 4],
        "masked_unit_attention": [True, True, False],
    },
    "imagegpt": {"n_positions": 256, "vocab_size": 33},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_dt_rank": 4},
    "layoutlm": {"max_2d_position_embeddings": 64},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "max_2d_position_embeddings": 64},
    "levit": {
        "image_size": 64,
        "patch_size": 16,
        "hidden_sizes": [32, 48, 64],
        "num_attention_heads": [2, 3, 4],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "down_ops": [["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 6, 4, 2, 2]],
    },
    "lilt": {"hidden_size": 48, "intermediate_size": 64, "max_2d_position_embeddings": 64},
    "luke": {"entity_vocab_size": 32, "entity_emb_size": 16},
    "longformer": {"attention_window": 8},
    "minicpm3": {**_LATENT, "head_dim": 8},
    "mistral4": {**_LATENT, "head_dim": 16},
    "mobilevit": {
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 16, 24, 32],
        "image_size": 64,
        "patch_size": 2,
        "num_attention_heads": 2,
    },
    "mobilevitv2": {
        "base_attn_unit_dims": [16, 24, 32],
        "width_multiplier": 0.5,
        "image_size": 64,
        "patch_size": 2,
        "n_attn_blocks": [1, 1, 1],
    },
    "perceiver": {
        "d_latents": 32,
        "num_latents": 8,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
        "image_size": 32,
        "train_size": [32, 32],
    },
    "pvt": {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 2, 4], "mlp_ratios": [2, 2, 2, 2]},
    "pvt_v2": {
        "image_size": [32, 32],
        "hidden_sizes": [8, 16, 24, 32],
        "num_attention_heads": [1, 2, 2, 4],
        "mlp_ratios": [2, 2, 2, 2],
    },
    "poolformer": {"hidden_sizes": [16, 16, 24, 32], "depths": [1, 1, 2, 1], "layer_scale_init_value": 0.5},
    "qwen3_5": {"text_config": _HYBRID},
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "regnet": {**_CONVOLUTIONS, "groups_width": 8},
    "reformer": {
        "attention_head_size": 8,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 8],
        "hidden_size": 32,
        "axial_pos_embds_dim": [8, 24],
        "feed_forward_size": 48,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 2,
        "is_decoder": False,
    },
    "resnet": _CONVOLUTIONS,
    "roc_bert": {
        "pronunciation_vocab_size": 32,
        "shape_vocab_size": 32,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "segformer": {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16},
    "swiftformer": {
        "image_size": 64,
        "embed_dims": [16, 24, 32, 40],
        "depths": [1, 1, 1, 1],
        "layer_scale_init_value": 0.5,
    },
    "swin": _SWIN,
    "swinv2": _SWIN,
    "textnet": {
        "image_size": [64, 64],
        "stem_out_channels": 16,
        "hidden_sizes": [16, 16, 32, 32, 64],
        "conv_layer_kernel_sizes": [[[3, 3]], [[1, 3]], [[3, 1]], [[3, 3]]],
        "conv_layer_strides": [[1], [2], [2], [2]],
    },
    "mobilenet_v1": {"image_size": 64, "depth_multiplier": 0.5},
    "mobilenet_v2": {"image_size": 64, "depth_multiplier": 0.5},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "n_mamba_heads": 2,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "hybrid_layer_ids": [1],
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "num_key_value_heads": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "kv_channels": 8,
        "num_query_groups": 4,
        "adapter_rank": 4,
        "chunk_size": 16,
        "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
}

# What checkpoints of a family hold beside the fields of its configuration class.
EXTRA: dict[str, dict[str, Any]] = {
    **{family: {"decoder_start_token_id": 0} for family in ("t5", "mt5", "umt5")},
    "deberta-v2": {"share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
}

# Families that cannot be built here at all, and why.
ELSEWHERE = {
    "dinat": "needs natten",
    "layoutlmv2": "needs detectron2",
    "timm_wrapper": "needs timm",
    "gpt-sw3": "is gpt2 under another name: its configuration says `gpt2`",
}


def families() -> list[str]:
    """Every family that has a classifier of texts or of images."""
    from transformers.models.auto import modeling_auto

    texts = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    images = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return sorted({*texts, *images})


def architecture(family: str) -> dict[str, Any]:
    """Section `[model.architecture]` of `family` at a small size."""
    from transformers import AutoConfig

    fields = {"model_type": family, **_small(AutoConfig.for_model(family).to_dict())}
    for name, value in OWN.get(family, {}).items():
        is_part = isinstance(value, dict) and "model_type" in fields.get(name, {})
        fields[name] = {**fields[name], **value} if is_part else value
    return fields


def image_size(family: str) -> int | None:
    """Side of the images for a family of images whose configuration says none; None for all others."""
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    is_image = family in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    fields = AutoConfig.for_model(family).to_dict()
    return 64 if is_image and not {"image_size", "vision_config"} & fields.keys() else None


def _small(fields: dict[str, Any]) -> dict[str, Any]:
    """Small values for those of `fields` that have one, and for those of configurations inside."""
    small = {
        name: SIZES[name]
        for name, value in fields.items()
        if name in SIZES and (value is None or isinstance(value, int | float)) and not isinstance(value, bool)
    }
    for name, value in fields.items():
        if name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
            small[name] = 2
        if isinstance(value, dict) and "model_type" in value:
            small[name] = {"model_type": value["model_type"], **_small(value)}
    # As in the tokenizer that is saved beside it.
    small |= {name: number for name, number in (("pad_token_id", 0), ("eos_token_id", 2)) if name in fields}
    return small


def save(family: str, directory: Path) -> None:
    """Writes a checkpoint of `family` with random weights and a classifier of three classes."""
    import transformers

    from fedelta.models.source import ModelSource, modality_of, read_config
    from fedelta.tasks.classification import Classification

    config = read_config(ModelSource(architecture=architecture(family)))
    config.num_labels = len(CLASSES)
    config.id2label, config.label2id = dict(enumerate(CLASSES)), {name: i for i, name in enumerate(CLASSES)}
    config.architectures = []
    for name, value in EXTRA.get(family, {}).items():
        setattr(config, name, value)
    kind, loader = modality_of(config, Classification())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = getattr(transformers, loader.auto_class).from_config(config)
        _settle(module, config)
    module.save_pretrained(directory)
    if kind.name == "text":
        _save_tokenizer(directory)


@torch.no_grad()
def _settle(module: torch.nn.Module, config: PretrainedConfig) -> None:
    """Gives batch norms the statistics of noise: with those of a fresh network the numbers of a deep one explode."""
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = 1.0
        size = getattr(config, "image_size", None) or 64
        module.train()(torch.randn(8, 3, *(size if isinstance(size, list) else (size, size))))


def _save_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 2)])
    tokenizer.save(str(directory / "tokenizer.json"))
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "eos_token": "[EOS]",
        "model_max_length": 64,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(facts))
