"""What a run has released so far, and what its next round needs: the part of a checkpoint that privacy adds.

A `Release` is one use of the Gaussian mechanism whose noise has the standard deviation `noise_multiplier` times the
sensitivity (neighbouring relation: one unit is added or removed). `Spent` says for everyone who is protected which
releases there were, and how often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

EVERYONE = ""  # the key for units that have all spent the same, such as the clients of Poisson cohorts


class Release(NamedTuple):
    """A Gaussian mechanism on a Poisson sample.

    Args:
        noise_multiplier: standard deviation of the noise divided by the sensitivity.
        rate: probability with which a unit is in the sample; 1: no sampling, or sampling that is not counted on.
    """

    noise_multiplier: float
    rate: float = 1.0


Spent = Mapping[str, Mapping[Release, int]]
"""Who (`EVERYONE`, or a client number as text) to the releases about them and how often each happened."""


@dataclass(frozen=True)
class PrivacyState:
    """What privacy takes from one round to the next.

    Args:
        spent: all releases so far.
        clipping_norm: C of the next round; None until round 1 has set it.
        releases_of_draw: releases about the current cohort, if it stays for several rounds.
        labels: of the noise of the last rounds, which a part of the next noise takes back; the last one first.
    """

    spent: Spent = field(default_factory=dict)
    clipping_norm: float | None = None
    releases_of_draw: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    def as_record(self) -> dict[str, Any]:  # Any: JSON
        """JSON values; `from_record` reads back an equal state."""
        spent = {
            who: [[release.noise_multiplier, release.rate, times] for release, times in releases.items()]
            for who, releases in self.spent.items()
        }
        return {
            "spent": spent,
            "clipping_norm": self.clipping_norm,
            "releases_of_draw": list(self.releases_of_draw),
            "labels": list(self.labels),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> PrivacyState:  # Any: JSON
        """The state whose `as_record` gave `record`."""
        spent = {
            who: {Release(noise_multiplier, rate): times for noise_multiplier, rate, times in releases}
            for who, releases in record["spent"].items()
        }
        return cls(spent, record["clipping_norm"], tuple(record["releases_of_draw"]), tuple(record["labels"]))


def grown(spent: Spent, about: Mapping[str, tuple[Release, int]]) -> Spent:
    """`spent` after further releases.

    Args:
        spent: before.
        about: who to a release, and how often it happened; a negative number takes it back.
    """
    after = dict(spent)
    for who, (release, times) in about.items():
        releases = dict(after.get(who, {}))
        releases[release] = releases.get(release, 0) + times
        after[who] = {key: number for key, number in releases.items() if number}
    return after
