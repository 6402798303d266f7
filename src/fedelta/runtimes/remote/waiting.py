"""Waits for sites, and says so."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from fedelta.runtimes.remote.post import Post

_BETWEEN_WORDS = 5.0  # seconds between two calls of `watch`
_PAUSE = 0.5


@dataclass(frozen=True)
class Waiting:
    """A wait for sites.

    Args:
        present: the connected sites.
        missing: registered sites that are not connected.
        num_needed: the least number of sites.
        seconds_left: until the wait ends.
    """

    present: tuple[str, ...]
    missing: tuple[str, ...]
    num_needed: int
    seconds_left: float

    def __str__(self) -> str:
        """For people.

        >>> print(Waiting(("berlin",), ("hamburg",), 2, 100.0))
        waiting for sites: 1 of 2, missing: hamburg (100 s left)
        """
        missing = f", missing: {', '.join(self.missing)}" if self.missing else ""
        needed = max(self.num_needed, len(self.present) + len(self.missing))
        return f"waiting for sites: {len(self.present)} of {needed}{missing} ({self.seconds_left:.0f} s left)"


Watch = Callable[[Waiting], None]


def silent(waiting: Waiting) -> None:
    """Does nothing."""


def wait_for(
    post: Post,
    seconds: float,
    num_needed: int,
    watch: Watch,
    *,
    among: Collection[str] | None = None,
    for_all: bool = False,
) -> list[str]:
    """Waits until enough sites are connected that fit the run, or `seconds` are over; returns these.

    Args:
        post: sees who is connected.
        seconds: the longest wait.
        num_needed: the least number of sites.
        watch: called at once and then every five seconds while waiting.
        among: the sites that count; None for all registered ones.
        for_all: wait for all that count.
    """
    post.look(again=True)
    began, told = post.now, -_BETWEEN_WORDS
    while True:
        names = post.book.names if among is None else sorted(among)
        present = [site for site in post.book.available if site in names]
        missing = tuple(sorted(set(names) - set(present)))
        left = began + seconds - post.now
        if left <= 0 or (len(present) >= num_needed and not (for_all and missing)):
            return present
        if post.now - began - told >= _BETWEEN_WORDS:
            told = post.now - began
            watch(Waiting(tuple(present), missing, num_needed, left))
        post.pause(min(_PAUSE, left))
        post.look()
