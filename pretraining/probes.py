"""Linear probes: logistic regression on the frozen features of a network, for scikit-learn's digits and CIFAR-100."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import interpolate
from transformers import PreTrainedModel

from pretraining.networks import image_features

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
# Inverse regularisation strengths; the same search for every network.
STRENGTHS = (0.001, 0.01, 0.1, 1.0)


def digits() -> tuple[torch.Tensor, Labels]:
    """The 1,797 digits as uint8 (N, 1, 8, 8) and their labels; 16 grey levels, as scikit-learn embeds them."""
    bunch = load_digits()
    return torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[:, None], bunch.target


def cifar100(directory: Path, split: str) -> tuple[torch.Tensor, Labels]:
    """Images uint8 (N, 3, 32, 32) and fine labels of one Parquet file in the hub's layout (`img`, `fine_label`)."""
    table = pyarrow.parquet.read_table(directory / f"{split}.parquet").to_pydict()
    cells = [cell["bytes"] if isinstance(cell, dict) else cell for cell in table["img"]]
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(cell)).convert("RGB")) for cell in cells])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2), np.asarray(table["fine_label"])


@torch.inference_mode()
def features_of(backbone: PreTrainedModel, images: torch.Tensor, side: int) -> Array:
    """Features (N, D) of uint8 images of any size, scaled to the network's side and range (mean and std 0.5)."""
    backbone.eval()
    chunks = []
    for chunk in images.split(256):
        pixels = interpolate(chunk.float() / 255, (side, side), mode="bilinear", antialias=True)
        chunks.append(image_features(backbone, (pixels.expand(-1, 3, -1, -1) - 0.5) * 2.0))
    return torch.cat(chunks).numpy()


def few_shot_accuracy(features: Array, labels: Labels, *, shots: int, draws: int) -> float:
    """Mean accuracy over draws of `shots` labelled examples per class, tested on all others, best strength."""
    return max(
        float(np.mean([_one_draw(features, labels, shots, draw, strength) for draw in range(draws)]))
        for strength in STRENGTHS
    )


def probe_accuracy(train: tuple[Array, Labels], test: tuple[Array, Labels]) -> float:
    """Test accuracy of a probe on all training data; the strength is chosen on a fifth held out from it."""
    parts = train_test_split(*train, test_size=0.2, stratify=train[1], random_state=0)
    inner, held_out = (parts[0], parts[2]), (parts[1], parts[3])
    best = max(STRENGTHS, key=lambda strength: _score(inner, held_out, strength))
    return _score(train, test, best)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, rounded for a report."""
    return round(sum(values) / len(values), 4)


def _one_draw(features: Array, labels: Labels, shots: int, draw: int, strength: float) -> float:
    rng = np.random.default_rng(draw)
    shown = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:shots] for c in np.unique(labels)])
    hidden = np.setdiff1d(np.arange(len(labels)), shown)
    return _score((features[shown], labels[shown]), (features[hidden], labels[hidden]), strength)


def _score(train: tuple[Array, Labels], test: tuple[Array, Labels], strength: float) -> float:
    scaler = StandardScaler().fit(train[0])
    # A loose tolerance is enough for a score in per cent, and CIFAR-100 would otherwise take minutes.
    classifier = LogisticRegression(C=strength, max_iter=1000, tol=1e-3)
    classifier.fit(scaler.transform(train[0]), train[1])
    return float(classifier.score(scaler.transform(test[0]), test[1]))
