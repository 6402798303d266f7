"""The network of the engineer who has one of her own."""

from torch import nn


def cnn() -> nn.Sequential:
    """Logits [B, 10] of images [B, 1, 8, 8]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
