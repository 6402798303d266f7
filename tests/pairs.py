"""Cases in which every two choices meet: most faults of a combination are faults of two of its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

Case = dict[str, str]


def pairwise(axes: Mapping[str, Sequence[str]], allowed: Callable[[Case], bool] = lambda _: True) -> list[Case]:
    """Few cases, one value of each axis, that contain every pair of values of two axes that may meet.

    Greedy: each case starts with the first pair that is still missing, and takes on every other axis the value with
    which it contains the most missing pairs.

    Args:
        axes: name to values, two axes or more.
        allowed: whether these values, of some axes or of all, may meet.
    """
    missing = {
        frozenset({(one, left), (other, right)}): None  # a dictionary, because its order is always the same
        for one, other in combinations(axes, 2)
        for left, right in product(axes[one], axes[other])
        if allowed({one: left, other: right})
    }
    cases = []
    while missing:
        case = dict(sorted(next(iter(missing))))
        for axis in [name for name in axes if name not in case]:
            values = [value for value in axes[axis] if allowed(case | {axis: value})]
            case[axis] = max(values, key=lambda value: _num_missing(missing, case, axis, value))
        for pair in combinations(case.items(), 2):
            missing.pop(frozenset(pair), None)
        cases.append({axis: case[axis] for axis in axes})
    return cases


def _num_missing(missing: Mapping[frozenset[tuple[str, str]], None], case: Case, axis: str, value: str) -> int:
    return sum(frozenset({(axis, value), chosen}) in missing for chosen in case.items())
