"""Digits with a vision transformer, each client with its own data."""

import datasets
import numpy as np
from sklearn.datasets import load_digits
from transformers import AutoModelForImageClassification, TrainingArguments

import fedelta
from fedelta.hf import federate_trainer


def rows(start: int, stop: int, step: int = 1) -> datasets.Dataset:
    """Some digits, as the model takes them."""
    digits = load_digits()
    pictures = np.kron(digits.images[start:stop:step] / 16, np.ones((1, 4, 4)))  # 8 x 8 to 32 x 32
    pixels = np.repeat(pictures[:, None], 3, axis=1).astype(np.float32)
    table = datasets.Dataset.from_dict({"pixel_values": pixels, "labels": digits.target[start:stop:step]})
    return table.with_format("torch")


def compute_metrics(prediction) -> dict[str, float]:
    """The share of right answers."""
    return {"right": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


base = fedelta.bundled_path("vit-micro")
model = AutoModelForImageClassification.from_pretrained(
    base, num_labels=10, ignore_mismatched_sizes=True, dtype="float32"
)
args = TrainingArguments(
    output_dir="runs/images", learning_rate=2e-3, per_device_train_batch_size=16, num_train_epochs=1, use_cpu=True
)
result = federate_trainer(
    model,
    args=args,
    train_datasets={f"client {number}": rows(number, 400, 4) for number in range(4)},
    eval_dataset=rows(400, 500),
    compute_metrics=compute_metrics,
    num_rounds=5,
)
print(result.summary["metrics"]["right"])
