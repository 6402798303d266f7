"""Named random streams, so that every draw is a function of the seed and of what it is for."""

import hashlib

import torch


def stream(seed: int, *path: str | int) -> torch.Generator:
    """A fresh generator for one purpose, e.g. `stream(7, "batch", 12)`; the same arguments give the same draws."""
    key = "/".join(str(part) for part in (seed, *path))
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> torch.Tensor:
    """Independent uniform draws in [low, high), float32, of the given shape."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def chance(generator: torch.Generator, probability: float, *shape: int) -> torch.Tensor:
    """Independent booleans of the given shape, each true with the given probability."""
    return torch.rand(shape, generator=generator) < probability
