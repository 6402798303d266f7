"""Weights and images on disk, for sites that have their own."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

from fedelta.seeds import stream


def write_weights(folder: Path, seed: int) -> Path:
    """A tiny ViT for ten classes in Hugging Face form; another seed gives other weights."""
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8,
        num_labels=10,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    generator = stream(seed, "weights")
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 10)
    model.save_pretrained(folder)
    return folder


def write_digits(folder: Path, classes: str) -> Path:
    """Four images of each of these digits for training and two for the test, in a folder for each class."""
    digits = load_digits()
    for digit in map(int, classes):
        for number, row in enumerate((digits.target == digit).nonzero()[0][:6]):
            path = folder / ("train" if number < 4 else "test") / str(digit) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[row] * 15).astype("uint8")).save(path)
    return folder
