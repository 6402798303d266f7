"""The mechanism that an audit tries: that of the run, with fewer rounds and fewer units, so that trials are cheap.

Its noise is the run's. Its epsilon is accounted for by the same rules, and is what the trials are held against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fedelta.auditing.curve import DeltaCurve
from fedelta.privacy.state import Release

Releases = Mapping[Release, int]

# Trials of this size can hardly tell an epsilon apart from one that is larger, or from 0.
_LARGEST, _SMALLEST = 12.0, 2.0


class Reduced(NamedTuple):
    """The size of the mechanism that is tried.

    Args:
        num_units: examples of a client, or clients of the federation.
        times: steps, or rounds.
        releases: what it releases about a unit.
    """

    num_units: int
    times: int
    releases: Releases


def reduced(
    releases_of: Callable[[int, int], Releases], num_units: int, times: int, *, fewest: int, delta: float
) -> Reduced:
    """The mechanism with halved numbers, as often as it takes to make its epsilon measurable.

    Fewer times make epsilon smaller; fewer units, of which a sample of the same size is drawn, make it larger.

    Args:
        releases_of: what is released with so many units and times.
        num_units: of the run.
        times: those of the run, or what can be afforded.
        fewest: number of units below which nothing changes any more.
        delta: of the guarantee.
    """

    def epsilon() -> float:
        return DeltaCurve(releases_of(num_units, times)).epsilon(delta)

    while times > 1 and epsilon() > _LARGEST:
        times //= 2
    while num_units > fewest and epsilon() < _SMALLEST:
        num_units = max(fewest, num_units // 2)
    return Reduced(num_units, times, releases_of(num_units, times))
