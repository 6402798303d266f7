"""The convolutional network of LEAF's FEMNIST task, which federated learning papers train from scratch.

    conv 5x5 -> ReLU -> max pool 2 -> conv 5x5 -> ReLU -> max pool 2 -> linear -> ReLU -> linear

Convolutions keep the image size. With LEAF's widths and 62 classes there are 6,603,710 parameters. LEAF initialises
weights Glorot-uniform and biases to zero, as TensorFlow does; here both are initialised as in PyTorch.

Source: Caldas et al. 2018 (LEAF, arXiv 1812.01097); the authors' `models/femnist/cnn.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d
from transformers import PretrainedConfig, PreTrainedModel, initialization
from transformers.modeling_outputs import ImageClassifierOutput

from fedelta.errors import ModelError


class LeafCnnConfig(PretrainedConfig):
    """Sizes of LEAF's network.

    Args:
        num_channels: channels of the images.
        image_size: side of the images in pixels; the default is that of EMNIST and MNIST.
        channels: output channels of the two convolutions.
        hidden: features between the two linear layers.
    """

    model_type = "fedelta_leaf_cnn"

    num_channels: int = 1
    image_size: int = 28
    channels: list[int] | tuple[int, ...] = (32, 64)
    hidden: int = 2048


class LeafCnn(PreTrainedModel):
    """Two convolutions and two linear layers."""

    config_class = LeafCnnConfig
    main_input_name = "pixel_values"

    def __init__(self, config: LeafCnnConfig) -> None:
        super().__init__(config)
        if config.image_size < 4:
            raise ModelError(f"`image_size` is {config.image_size}, expected at least 4: it is halved twice.")
        first, second = config.channels
        self.conv1 = nn.Conv2d(config.num_channels, first, kernel_size=5, padding="same")
        self.conv2 = nn.Conv2d(first, second, kernel_size=5, padding="same")
        self.hidden = nn.Linear(second * (config.image_size // 4) ** 2, config.hidden)
        self.classifier = nn.Linear(config.hidden, int(config.num_labels or 0))
        self.post_init()  # type: ignore[no-untyped-call]  # transformers

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """Logits [B, C] in the hub's output object, for images [B, num_channels, image_size, image_size]."""
        # A processor pools several times faster where the channels of a pixel lie side by side. ReLU after the pool is
        # the same function, also of ties, on a quarter of the numbers.
        x = pixel_values.clone(memory_format=torch.channels_last)
        x = max_pool2d(self.conv1(x), 2).relu()
        x = max_pool2d(self.conv2(x), 2).relu()
        return ImageClassifierOutput(logits=self.classifier(self.hidden(x.flatten(1)).relu()))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's default: weights and biases are uniform within 1 / sqrt(fan-in)."""
        if isinstance(module, nn.Conv2d | nn.Linear):
            start_as_pytorch(module)


def start_as_pytorch(layer: nn.Conv2d | nn.Linear) -> None:
    """Initialises a layer as PyTorch does, with transformers' functions: they skip tensors loaded from a checkpoint."""
    bound = 1 / math.sqrt(layer.weight[0].numel())
    for tensor in (layer.weight, layer.bias):
        if tensor is not None:
            initialization.uniform_(tensor, -bound, bound)
