"""What was reached of the goals of a work, worked out from the figures of its sides."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.peers.works import PEERS, Goal, Work

OURS = "fedelta"
Figures = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class Reached:
    """A goal beside what was measured.

    Args:
        goal: of the work.
        side: the best of those that it is against.
        ratio: fedelta's value to that side's.
    """

    goal: Goal
    side: str
    ratio: float

    @property
    def is_met(self) -> bool:
        """Whether the ratio is within the limit."""
        return self.ratio <= self.goal.limit


def reached(work: Work, figures: Figures) -> list[Reached]:
    """Every goal of `work` that fedelta and at least one of the sides it is against have figures for."""
    found = (_reached(goal, figures) for goal in work.goals)
    return [one for one in found if one is not None]


def best_peer(figures: Figures) -> str | None:
    """The peer with the smallest median; None if no peer has times."""
    timed = [name for name in PEERS if _value("round", figures.get(name))]
    return min(timed, key=lambda name: _value("round", figures[name])) if timed else None


def _reached(goal: Goal, figures: Figures) -> Reached | None:
    # A first round is compared with a later round of others, which recompute in each what fedelta keeps.
    theirs = "round" if goal.what == "first" else goal.what
    values = {name: value for name in goal.against if (value := _value(theirs, figures.get(name)))}
    ours = _value(goal.what, figures.get(OURS))
    if not values or not ours:
        return None
    side = min(values, key=values.__getitem__)
    return Reached(goal, side, ours / values[side])


def _value(what: str, figures: Mapping[str, object] | None) -> float | None:
    """Median seconds of later or first rounds, or MiB; None if they were not measured."""
    if figures is None:
        return None
    if what == "memory":
        return figures["peak_mib"]
    seconds = figures["first_seconds" if what == "first" else "seconds"]
    return statistics.median(seconds) if seconds else None
