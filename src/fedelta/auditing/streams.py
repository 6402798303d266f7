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
        is_silent: whether there is no noise, so that the audit shows that it would notice.
    """

    seed: int
    is_secret: bool = False
    is_silent: bool = False

    def of(self, *path: str | int) -> Randomness:
        """The randomness of the trial, or of the trials, at `path`."""
        digest = hashlib.shake_256(repr(("audit", self.seed, *path)).encode()).digest(KEY_BYTES)
        randomness = Secret(digest) if self.is_secret else Seeded(int.from_bytes(digest[:7], "big"))
        return Silent(randomness) if self.is_silent else randomness


@dataclass(frozen=True)
class Silent:
    """Randomness without noise: samples are drawn, normal numbers are zero."""

    randomness: Randomness

    @property
    def is_secure(self) -> bool:
        """As it would be with noise."""
        return self.randomness.is_secure

    def generator(self, *path: str | int) -> Generator:
        """See `Randomness.generator`."""
        return self.randomness.generator(*path)

    def normal(self, num: int, *path: str | int) -> Tensor:
        """Zeros; see `Randomness.normal`."""
        return self.randomness.normal(num, *path).zero_()

    def below(self, *path: str | int) -> Silent:
        """See `Randomness.below`."""
        return Silent(self.randomness.below(*path))

    def label(self, *path: str | int) -> str:
        """See `Randomness.label`."""
        return self.randomness.label(*path)
