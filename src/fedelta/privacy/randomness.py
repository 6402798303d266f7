"""Random numbers for noise and sampling: from the seed of a run, or from a secret key.

Both name their streams by a path, so that a round that is repeated after a kill releases the same numbers once more and
nothing new. Seeded streams are known to everyone who knows the configuration: they protect nobody and are for tests and
simulations. Secret streams come from SHAKE-256 with a key of the operating system's generator.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from fedelta.seeds import stream

KEY_BYTES = 32
_BLOCK = 4096  # numbers of a stream that are made together; small enough for a processor's cache
_PAIRS = 4  # Box-Muller pairs that are added up; n = 2 of the source, which adds 2 n
# Where torch's generator keeps the words of its Mersenne Twister: after seed, counters and position.
_STATE_WORDS, _STATE_BEGIN, _WORD_BYTES = 624, 24, 8


class Randomness(Protocol):
    """Named streams of random numbers."""

    @property
    def is_secure(self) -> bool:
        """Whether the numbers are unknown to everyone who does not have the key."""

    def generator(self, *path: str | int) -> Generator:
        """A generator for samples of rows or clients, at the start of the stream at `path`."""

    def normal(self, num: int, *path: str | int) -> Tensor:
        """`num` independent standard normal numbers from the stream at `path`, float64 of shape [num], on the CPU."""

    def below(self, *path: str | int) -> Randomness:
        """Streams for one occasion of many, which is named by `path`."""

    def label(self, *path: str | int) -> str:
        """A text for an occasion, which tells nothing about `path`."""


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

    def below(self, *path: str | int) -> Seeded:
        """The same streams: those of a simulation, which knows no occasions."""
        return self

    def label(self, *path: str | int) -> str:
        """Empty, since there are no occasions."""
        return ""


@dataclass(frozen=True)
class Secret:
    """Streams of a secret key.

    A normal number is half the sum of four numbers of different Box-Muller pairs: a single one has gaps, as every
    function of finitely many bits, by which an observer could find out what it was added to. A number depends on its
    place in the stream, not on how many are asked for.

    Args:
        key: 32 bytes (`new_key`).

    Source: Holohan and Braghin 2021 (arXiv 2107.10138), section 5.
    """

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, found {len(self.key)}")

    @property
    def is_secure(self) -> bool:
        """True."""
        return True

    def below(self, *path: str | int) -> Secret:
        """Streams of a key of their own, which follows from this one and `path`."""
        return Secret(self._bytes(KEY_BYTES, "key", *path))

    def label(self, *path: str | int) -> str:
        """See `Randomness.label`; equal paths have equal labels."""
        return self._bytes(KEY_BYTES, "label", *path).hex()

    def generator(self, *path: str | int) -> Generator:
        """See `Randomness.generator`.

        All words of its state are secret. A seed would not do: torch takes 32 bits of it, which can be tried out
        (findings/torch_a_seed_has_32_bits.sh).
        """
        generator = Generator()
        state = generator.manual_seed(0).get_state()
        words = np.frombuffer(self._bytes(4 * _STATE_WORDS, "generator", *path), dtype="<u4").astype("<u8")
        end = _STATE_BEGIN + _STATE_WORDS * _WORD_BYTES
        state[_STATE_BEGIN:end] = torch.from_numpy(words.view(np.uint8))
        return generator.set_state(state)

    def normal(self, num: int, *path: str | int) -> Tensor:
        """See `Randomness.normal`."""
        numbers = torch.empty(num, dtype=torch.float64)
        for block, part in enumerate(numbers.split(_BLOCK)):
            # Whole blocks, so that a number's last bits do not depend on how many were asked for.
            part.copy_(self._block(block, *path)[: len(part)])
        return numbers

    def _block(self, block: int, *path: str | int) -> Tensor:
        """Numbers of the stream: cosines of all pairs, then their sines."""
        num_bytes = 2 * _PAIRS * (_BLOCK // 2) * 8
        bits = np.frombuffer(self._bytes(num_bytes, "normal", block, *path), dtype="<u8")
        uniform = torch.from_numpy(((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)  # in (0, 1)
        radius, angle = uniform.view(2, _PAIRS, _BLOCK // 2)
        length = radius.log_().mul_(-2).sqrt_()
        angle.mul_(2 * math.pi)
        # The sum of n standard normal numbers has the deviation sqrt(n).
        parts = [(length * turn).sum(0).div_(math.sqrt(_PAIRS)) for turn in (angle.cos(), angle.sin())]
        return torch.cat(parts)

    def _bytes(self, num: int, *path: str | int) -> bytes:
        return hashlib.shake_256(self.key + repr(path).encode()).digest(num)


def new_key() -> bytes:
    """A key from the operating system's generator."""
    return os.urandom(KEY_BYTES)
