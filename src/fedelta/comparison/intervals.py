"""Whether one group is better than another by more than chance, as far as their seeds tell."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from pandas import DataFrame

from fedelta.grid import SEED

LEVEL = 0.95
BySeed = Mapping[Any, float]  # Any: a label of a seed


def is_better(one: BySeed, other: BySeed, *, higher_is_better: bool) -> bool:
    """Whether the 95 % interval of the mean difference, over the seeds that both have, lies on the side of `one`.

    Cells with the same seed have the same data, division and cohorts, so differences are taken seed by seed (paired
    t-interval). With fewer than two seeds in common there is no interval, and nothing is better.

    >>> first, second = {1: 0.80, 2: 0.70, 3: 0.90}, {1: 0.75, 2: 0.66, 3: 0.84}
    >>> is_better(first, second, higher_is_better=True), is_better(second, first, higher_is_better=True)
    (True, False)
    >>> is_better({1: 0.9, 2: 0.7}, {1: 0.8, 2: 0.75}, higher_is_better=True)
    False
    """
    from scipy.special import stdtrit

    sign = 1 if higher_is_better else -1
    differences = [sign * (one[seed] - other[seed]) for seed in one if seed in other]
    if len(differences) < 2:
        return False
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return bool(statistics.fmean(differences) > stdtrit(len(differences) - 1, (1 + LEVEL) / 2) * error)


def by_seed(cells: DataFrame, name: str) -> BySeed:
    """The known values of the column `name` of a group's cells, by seed."""
    known = cells[cells[name].notna()]
    seeds = known[SEED].tolist() if SEED in cells else [None] * len(known)
    return dict(zip(seeds, known[name].tolist(), strict=True))


def level(best: BySeed, others: Mapping[int, BySeed], *, higher_is_better: bool) -> set[int]:
    """The keys of `others` that `best` does not beat by more than chance."""
    return {key for key, row in others.items() if not is_better(best, row, higher_is_better=higher_is_better)}
