"""Random streams as values.

A stream is named by the seed and a path of words and numbers, such as `stream(7, "batches", 3, 12)` for the
batch order of client 12 in round 3. Two streams with different paths are independent, the same path gives the
same bits whatever ran before, so there is no generator state to save, to pass on or to get out of step.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *path: str | int) -> int:
    """A seed in [0, 2**63) for the stream at `path`; equal arguments give equal seeds.

    >>> derive(7, "batches", 3) == derive(7, "batches", 3)
    True
    >>> derive(7, "batches", 3) == derive(7, "batches", "3")
    False
    """
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, *path: str | int) -> torch.Generator:
    """A fresh CPU generator at the start of the stream at `path`."""
    return torch.Generator().manual_seed(derive(seed, *path))
