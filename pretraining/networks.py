"""Networks of transformers' own, and the vector that stands for an image in each."""

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedModel

from pretraining.recipe import Network


def build_backbone(network: Network, seed: int) -> PreTrainedModel:
    """A network with random weights that depend on the seed alone; the global generator is left as it was."""
    config = AutoConfig.for_model(network.model_type, **network.settings)
    # Eager attention: on a CPU in bfloat16 it trains three times faster than the fused kernel at 17 tokens.
    config._attn_implementation = "eager"
    options = {"add_pooling_layer": False} if network.model_type == "vit" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - transformers draws initial weights from the global generator only
        backbone: PreTrainedModel = AutoModel.from_config(config, **options)
    return backbone


def image_features(backbone: PreTrainedModel, images: torch.Tensor) -> torch.Tensor:
    """What the classification head of the same family reads, (B, D): the class token, or the pooled map."""
    output = backbone(pixel_values=images)
    is_vit = backbone.config.model_type == "vit"
    features: torch.Tensor = output.last_hidden_state[:, 0] if is_vit else output.pooler_output.flatten(1)
    return features


class CosineHead(nn.Module):
    """Logits = scale * cosine between the feature and one direction per class.

    Without lengths to hide in, the features of a class must gather around its direction, which is what a few labelled
    examples of a new class need.
    """

    def __init__(self, num_features: int, num_classes: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        self.directions = nn.Parameter(torch.randn(num_classes, num_features, generator=generator) * 0.02)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of features (B, D)."""
        return self.scale * functional.normalize(features, dim=1) @ functional.normalize(self.directions, dim=1).T
