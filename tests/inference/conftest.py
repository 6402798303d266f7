"""Small checkpoints in the hub's form, with random weights, for every test of this folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.inference.adapters import CLASS_NAMES, IMAGE_FAMILIES, WORDS, write_tokenizer

from fedelta.models.native import register_networks

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}
TEXT = {**SIZES, "vocab_size": len(WORDS) + 2, "max_position_embeddings": 40, "pad_token_id": 0}
ARCHITECTURES: dict[str, dict[str, object]] = {
    "vit": IMAGE,
    "dinov2": IMAGE,
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"},
    "fedelta_resnet": {"stem_width": 4, "widths": [4, 8], "blocks_per_stage": 1, "image_size": 16},
    "bert": TEXT,
    "roberta": TEXT,
    "distilbert": {
        "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": len(WORDS) + 2, "pad_token_id": 0,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """Directory of a checkpoint of a family, with a head for CLASS_NAMES; written once."""
    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def write(family: str) -> Path:
        from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

        register_networks()
        config = AutoConfig.for_model(family, num_labels=len(CLASS_NAMES), **ARCHITECTURES[family])
        config.id2label = dict(enumerate(CLASS_NAMES))
        is_image = family in IMAGE_FAMILIES
        auto = AutoModelForImageClassification if is_image else AutoModelForSequenceClassification
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = auto.from_config(config)
            for parameter in model.parameters():
                # Larger than the usual beginnings, so that logits differ visibly.
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(root / family)
        if not is_image:
            write_tokenizer(root / family)
        return root / family

    return write
