"""The demo's task for both apps: model, data, training and evaluation, from the folder that `stock_side.py` wrote."""

import json
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForImageClassification


def load_model(folder):
    """The base model with the adapter that round 1 starts from."""
    base = AutoModelForImageClassification.from_pretrained(
        json.loads((Path(folder) / "base.json").read_text()), num_labels=10, dtype=torch.float32
    )
    return PeftModel.from_pretrained(base, Path(folder) / "adapter", is_trainable=True)


def load_data(folder):
    """Pixels as model inputs, and labels."""
    with np.load(Path(folder) / "data.npz") as data:
        return {name: torch.from_numpy(data[name]) for name in data.files}


def load_round(folder, server_round):
    """Learning rate, cohort, and each client's batches."""
    return json.loads((Path(folder) / "rounds" / f"{server_round}.json").read_text())


def train(model, data, batches, lr):
    """One client's local training; the mean loss."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    model.train()
    losses = []
    for rows in batches:
        logits = model(pixel_values=data["pixels"][rows]).logits
        loss = torch.nn.functional.cross_entropy(logits, data["labels"][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def accuracy(model, data):
    """On the test set, which belongs to no client."""
    model.eval()
    logits = model(pixel_values=data["test_pixels"]).logits
    return (logits.argmax(1) == data["test_labels"]).float().mean().item()
