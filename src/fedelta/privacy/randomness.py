"""Random numbers for noise and sampling: from the seed of a run, or from a secret key.

Both name their streams by a path, so that a round that is repeated after a kill releases the same numbers once more and
nothing new. Seeded streams are known to everyone who knows the configuration: they protect nobody and are for tests and
simulations. Secret streams come from SHAKE-256 with a key of the operating system's generator.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from fedelta.seeds import stream

_KEY_BYTES = 32


class Randomness(Protocol):
    """Named streams of random numbers."""

    @property
    def is_secure(self) -> bool:
        """Whether the numbers are unknown to everyone who does not have the key."""

    def generator(self, *path: str | int) -> Generator:
        """A generator for samples of rows or clients, at the start of the stream at `path`."""

    def normal(self, num: int, *path: str | int) -> Tensor:
        """`num` independent standard normal numbers from the stream at `path`, float64 of shape [num], on the CPU."""


@dataclass(frozen=True)
class Seeded:
    """Streams of the seed of a run."""

    seed: int

    @property
    def is_secure(self) -> bool:
        """False: the seed is in the configuration."""
        return False

    def generator(self, *path: str | int) -> Generator:
        """See `Randomness.generator`."""
        return stream(self.seed, *path)

    def normal(self, num: int, *path: str | int) -> Tensor:
        """See `Randomness.normal`."""
        return torch.randn(num, generator=stream(self.seed, *path), dtype=torch.float64)


@dataclass(frozen=True)
class Secret:
    """Streams of a secret key.

    A normal number is the mean of four Box-Muller numbers, times two: the sum has no gaps that an observer could use to
    find out what was added to it.

    Args:
        key: 32 bytes from the operating system (`os.urandom`).

    Source: Holohan and Braghin 2021 (arXiv 2107.10138), section 5.
    """

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != _KEY_BYTES:
            raise ValueError(f"a key has {_KEY_BYTES} bytes, found {len(self.key)}")

    @property
    def is_secure(self) -> bool:
        """True."""
        return True

    def generator(self, *path: str | int) -> Generator:
        """See `Randomness.generator`."""
        return Generator().manual_seed(int.from_bytes(self._bytes(8, "generator", *path), "big") >> 1)

    def normal(self, num: int, *path: str | int) -> Tensor:
        """See `Randomness.normal`."""
        whole = np.frombuffer(self._bytes(num * 4 * 8, "normal", *path), dtype="<u8").reshape(4, num)
        uniform = ((whole >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1)
        radius_1, angle_1, radius_2, angle_2 = uniform
        total = np.zeros(num)
        for radius, angle in ((radius_1, angle_1), (radius_2, angle_2)):
            length = np.sqrt(-2 * np.log(radius))
            total += length * np.cos(2 * math.pi * angle) + length * np.sin(2 * math.pi * angle)
        return torch.from_numpy(total / 2)

    def _bytes(self, num: int, *path: str | int) -> bytes:
        return hashlib.shake_256(self.key + repr(path).encode()).digest(num)
