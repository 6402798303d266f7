"""Random streams as values.

A seed and a path of words and numbers name a stream: `stream(7, "batches", 3, 12)` is the batch order of client 12 in
round 3. Streams with different paths are independent. The same path always gives the same bits, whatever was drawn
before, so there is no generator state to save or to pass on.
"""

from __future__ import annotations

import hashlib

import numpy as np
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
    """A new CPU generator at the start of the stream at `path`."""
    return torch.Generator().manual_seed(derive(seed, *path))


def uniform_numbers(generator: torch.Generator, num: int) -> torch.Tensor:
    """`num` numbers in [0, 1) that tell nothing about each other, float64; moves `generator` on.

    Whoever knows some numbers of torch's generator can work out the rest, as it is linear. These are from SHAKE-256 of
    its state, so that they are secret as long as the state is, also if many of them become known.
    """
    digest = hashlib.shake_256(generator.get_state().numpy().tobytes()).digest(8 * num)
    torch.rand(1, generator=generator)
    return torch.from_numpy((np.frombuffer(digest, dtype="<u8") >> np.uint64(11)) * 2.0**-53)
