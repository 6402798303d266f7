"""Networks of transformers' and of fedelta's own, and the vector that stands for an image in each."""

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedModel

from fedelta.models.resnet import SmallResNet, SmallResNetConfig
from pretraining.recipe import Network


def build_backbone(network: Network, seed: int) -> PreTrainedModel:
    """A network with random weights that depend on the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - transformers draws initial weights from the global generator only
        if network.model_type == "fedelta_resnet":
            return SmallResNet(SmallResNetConfig(**network.settings))
        config = AutoConfig.for_model(network.model_type, **network.settings)
        # Eager attention: on a CPU in bfloat16 it trains three times faster than the fused kernel at 17 tokens.
        config._attn_implementation = "eager"
        backbone: PreTrainedModel = AutoModel.from_config(config, add_pooling_layer=False)
    return backbone


def image_features(backbone: PreTrainedModel, images: torch.Tensor) -> torch.Tensor:
    """What the classification head of the same family reads, (B, D): the class token, or the mean of the last map."""
    if isinstance(backbone, SmallResNet):
        return backbone.features(images)
    features: torch.Tensor = backbone(pixel_values=images).last_hidden_state[:, 0]
    return features


def head_name(classifier: PreTrainedModel) -> str:
    """The child of a classifier that gives the logits."""
    return "linear" if isinstance(classifier, SmallResNet) else "classifier"


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
