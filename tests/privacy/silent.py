"""Randomness without noise, to see the sums that noise would hide."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fedelta.seeds import stream


@dataclass(frozen=True)
class Silent:
    """Streams of a seed whose normal numbers are zero."""

    seed: int = 0
    is_secure: bool = False

    def generator(self, *path: str | int) -> Generator:
        return stream(self.seed, *path)

    def normal(self, num: int, *path: str | int) -> Tensor:
        return torch.zeros(num, dtype=torch.float64)

    def below(self, *path: str | int) -> Silent:
        return self

    def label(self, *path: str | int) -> str:
        return ""
