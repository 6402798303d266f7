"""The random numbers of trials: drawn by the code that draws those of runs, but never the run's own numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Generator, Tensor

from fedelta.privacy.randomness import KEY_BYTES, Randomness, Secret, Seeded


@dataclass(frozen=True)
class Streams:
    """Randomness for each trial of an audit.

    Args:
        seed: of the audit.
        is_secret: whether numbers come from keys, as in a deployment, or from seeds, as in a simulation.
        noise: factor of all noise; 0 switches it off, so that the audit shows that it would notice.
    """

    seed: int
    is_secret: bool = False
    noise: float = 1.0

    def of(self, *path: str | int) -> Randomness:
        """The randomness of the trial, or of the trials, at `path`."""
        digest = hashlib.shake_256(repr(("audit", self.seed, *path)).encode()).digest(KEY_BYTES)
        randomness = Secret(digest) if self.is_secret else Seeded(int.from_bytes(digest[:7], "big"))
        return randomness if self.noise == 1 else Scaled(randomness, self.noise)


@dataclass(frozen=True)
class Scaled:
    """Randomness whose normal numbers are too small: samples are drawn as they should be.

    Args:
        randomness: in which they have the right size.
        noise: their standard deviation.
    """

    randomness: Randomness
    noise: float

    @property
    def is_secure(self) -> bool:
        """See `Randomness.is_secure`."""
        return self.randomness.is_secure

    def generator(self, *path: str | int) -> Generator:
        """See `Randomness.generator`."""
        return self.randomness.generator(*path)

    def normal(self, num: int, *path: str | int) -> Tensor:
        """See `Randomness.normal`."""
        return self.randomness.normal(num, *path).mul_(self.noise)

    def below(self, *path: str | int) -> Scaled:
        """See `Randomness.below`."""
        return Scaled(self.randomness.below(*path), self.noise)

    def label(self, *path: str | int) -> str:
        """See `Randomness.label`."""
        return self.randomness.label(*path)
