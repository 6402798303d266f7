"""Writes what all sides get: a CNN trained on upright digits, and mirrored digits of ten clients and a test set."""

from __future__ import annotations

from pathlib import Path

import torch
from benchmarks.journeys.sides.network import cnn
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

NUM_CLIENTS, NUM_UPRIGHT, NUM_MIRRORED = 10, 500, 1000  # the other 297 are the test set


def prepare(path: Path) -> None:
    """Writes weights, clients and test set to `path`: scikit-learn's digits, 8 x 8 pixels of 0 to 1."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target)
    weights = _trained(images[:NUM_UPRIGHT], labels[:NUM_UPRIGHT])
    images, labels = images[NUM_UPRIGHT:].flip(-1), labels[NUM_UPRIGHT:]
    clients = {
        f"hospital {number}": _rows(images, labels, slice(number, NUM_MIRRORED, NUM_CLIENTS))
        for number in range(NUM_CLIENTS)
    }
    test = _rows(images, labels, slice(NUM_MIRRORED, None))
    torch.save({"weights": weights, "clients": clients, "test": test}, path)


def _rows(images: Tensor, labels: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    # Copies: the file of a part of a tensor would hold the whole.
    return images[rows].clone(), labels[rows].clone()


def _trained(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Weights after 20 epochs in batches of 25."""
    torch.manual_seed(0)
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        for rows in torch.randperm(len(labels)).split(25):
            optimizer.zero_grad()
            cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.state_dict()
