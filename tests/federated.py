"""Small runs of a model and data that are given as objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fedelta

QUICK = fedelta.FedAvg(num_rounds=2)
CLIENT = fedelta.ClientSettings(lr=0.1, batch_size=8)


def cnn(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))


def rows(seed: int, num: int = 12) -> tuple[Tensor, Tensor]:
    labels = torch.arange(num) % 3
    noise = torch.randn(num, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return noise + labels.view(-1, 1, 1, 1).float(), labels


CLIENTS = {"ann": rows(1), "george": rows(2), "mary": rows(3)}
TEST = rows(9)


def federated(out: Path, model: Any = None, clients: Any = None, test: Any = TEST, **others: Any) -> fedelta.Result:
    others = {"tuning": fedelta.Lora(r=2), "strategy": QUICK, "client": CLIENT, "out": out} | others
    return fedelta.federate(cnn() if model is None else model, CLIENTS if clients is None else clients, test, **others)
