"""Small models and data for contracts; they take milliseconds and need no files.

Every tensor of a small model is random, biases and scales too: the zeros and ones of a new model would hide a forgotten
addition or factor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fedelta.data.batches import Examples
from fedelta.models.anatomy import anatomy_of
from fedelta.models.heads import HeadClasses
from fedelta.models.hub import Backbone
from fedelta.models.source import ModelSource, read_config
from fedelta.models.weights import load_network
from fedelta.seeds import stream
from fedelta.tasks.classification import Classification
from fedelta.tasks.labels import Labels

CLASS_NAMES = ("a", "b", "c")
_IMAGE: dict[str, object] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
_TEXT: dict[str, object] = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
}
SMALL_MODELS: dict[str, dict[str, object]] = {
    "vit": {"model_type": "vit"} | _IMAGE,
    "deit": {"model_type": "deit"} | _IMAGE,
    "bert": {"model_type": "bert"} | _TEXT,
    "roberta": {"model_type": "roberta"} | _TEXT,
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 20,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": 12,
    },
    "small-resnet": {
        "model_type": "resnet20",
        "stem_width": 4,
        "widths": [4, 8],
        "blocks_per_stage": 1,
        "image_size": 8,
    },
    "resnet": {
        "model_type": "resnet",
        # Not less: https://github.com/uxlfoundation/oneDNN/issues/6035
        "embedding_size": 16,
        "hidden_sizes": [16, 24],
        "depths": [1, 1],
        "layer_type": "basic",
    },
}
_TEXTS = ("bert", "roberta", "distilbert")


@dataclass(frozen=True)
class ReadyInputs:
    """Inputs without a transform: keyword tensors, rows first."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The inputs of `rows`."""
        return {name: tensor[rows] for name, tensor in self.tensors.items()}


def small_model(family: str, device: str = "cpu") -> Backbone:
    """A new classifier of three classes with two blocks or stages.

    Args:
        family: a key of `SMALL_MODELS`.
        device: "meta" for a model without memory or values.
    """
    drawn = _drawn(family, device)
    return Backbone(copy.deepcopy(drawn.module), drawn.anatomy)


@cache
def _drawn(family: str, device: str) -> Backbone:
    backbone = new_model(family, {}, len(CLASS_NAMES), device)
    if device != "meta":
        draw(backbone, family)
    return backbone


def new_model(family: str, sizes: Mapping[str, object], num_outputs: int, device: str = "cpu") -> Backbone:
    """A new model of `family`, with `sizes` if given; it has no tokenizer."""
    source = ModelSource(architecture=SMALL_MODELS[family] | dict(sizes))
    config = read_config(source)
    config.num_labels = num_outputs
    with torch.random.fork_rng(devices=[]):
        module = load_network(
            source, config, device, Classification(), HeadClasses((), CLASS_NAMES, is_logged=False)
        ).module.eval()
    return Backbone(module, anatomy_of(module, config.model_type))


def draw(backbone: Backbone, family: str, seed: int = 0) -> None:
    """Sets every parameter of a small model, and the statistics of its batch norms, to random values."""
    generator = stream(seed, "tiny", family)
    spread = 0.1 if family == "resnet" else 0.2  # it is wider than the others, and would overflow
    with torch.no_grad():
        for name, parameter in backbone.module.named_parameters():
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator) + is_scale)
        for name, buffer in backbone.module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.2 * torch.rand(buffer.shape, generator=generator))


def small_inputs(family: str, num_rows: int, seed: int = 0) -> ReadyInputs:
    """Random inputs for a small model of `family`; texts differ in length."""
    generator = stream(seed, "inputs", family)
    if family not in _TEXTS:
        size = 32 if family == "resnet" else 8  # its stem and stages divide the side by 8
        return ReadyInputs({"pixel_values": torch.randn(num_rows, 3, size, size, generator=generator)})
    lengths = torch.randint(3, 7, (num_rows, 1), generator=generator)
    mask = (torch.arange(6) < lengths).long()
    tokens = torch.randint(2, 20, (num_rows, 6), generator=generator) * mask
    return ReadyInputs({"input_ids": tokens, "attention_mask": mask})


def small_data(family: str, num_rows: int = 24, seed: int = 0) -> Examples:
    """Random rows with random labels."""
    labels = torch.randint(0, len(CLASS_NAMES), (num_rows,), generator=stream(seed, "labels"))
    return Examples(small_inputs(family, num_rows, seed), Labels(labels))
