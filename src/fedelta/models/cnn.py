"""The convolutional network of LEAF's FEMNIST task: the model that federated papers train from scratch.

    conv 5x5 -> ReLU -> max pool 2 -> conv 5x5 -> ReLU -> max pool 2 -> linear -> ReLU -> linear

Convolutions keep the image size. With LEAF's widths and 62 classes there are 6,603,710 parameters. LEAF starts
from TensorFlow's Glorot-uniform weights and zero biases; here both start as in PyTorch's own layers.

Source: Caldas et al. 2018 (LEAF, arXiv 1812.01097); the authors' `models/femnist/cnn.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.seeds import stream

IMAGE_SIZE = 28  # side of an EMNIST or MNIST image, in pixels


class LeafCnn(nn.Module):
    """Two convolutions and two linear layers for grey images of 28 x 28 pixels.

    Args:
        num_classes: number of logits.
        channels: output channels of the two convolutions.
        hidden: features between the two linear layers.
    """

    def __init__(self, num_classes: int, *, channels: tuple[int, int] = (32, 64), hidden: int = 2048) -> None:
        super().__init__()
        first, second = channels
        self.conv1 = nn.Conv2d(1, first, kernel_size=5, padding="same")
        self.conv2 = nn.Conv2d(first, second, kernel_size=5, padding="same")
        self.hidden = nn.Linear(second * (IMAGE_SIZE // 4) ** 2, hidden)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, 1, 28, 28]."""
        x = nn.functional.max_pool2d(self.conv1(pixel_values).relu(), 2)
        x = nn.functional.max_pool2d(self.conv2(x).relu(), 2)
        logits: Tensor = self.classifier(self.hidden(x.flatten(1)).relu())
        return logits


def leaf_cnn(num_classes: int, *, seed: int, channels: tuple[int, int] = (32, 64), hidden: int = 2048) -> Backbone:
    """LEAF's network in evaluation mode with random weights that depend on `seed` alone.

    Args:
        num_classes: number of logits.
        seed: of the run.
        channels: output channels of the two convolutions; LEAF's by default.
        hidden: features between the two linear layers; LEAF's by default.
    """
    # Layers made on "meta" draw nothing, so the global generator stays as it is.
    with torch.device("meta"):
        module = LeafCnn(num_classes, channels=channels, hidden=hidden)
    module.to_empty(device="cpu")
    generator = stream(seed, "model")
    for layer in module.children():
        _reset(layer, generator)
    return Backbone(module.eval(), Anatomy(head=("classifier",)))


@torch.no_grad()
def _reset(layer: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's default for linear layers and convolutions: uniform within 1 / sqrt(fan-in), weight and bias."""
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    bound = 1 / math.sqrt(weight[0].numel())
    weight.uniform_(-bound, bound, generator=generator)
    bias.uniform_(-bound, bound, generator=generator)
