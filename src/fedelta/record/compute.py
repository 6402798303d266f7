"""The cost of an answer at each exit (`exits.json`), and the area under a measure over that cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

from fedelta.errors import RunError
from fedelta.record.files import flatten, read_json
from fedelta.record.numbers import UNKNOWN


@dataclass(frozen=True)
class Compute:
    """The cost of one example from the input to each exit, lowest first; None if it was not measured.

    Args:
        flops: floating-point operations, two for each multiply-add.
        milliseconds: time on `machine`.
        machine: description such as `device cpu, threads 1`; empty if unknown.
    """

    flops: tuple[float, ...] | None
    milliseconds: tuple[float, ...] | None
    machine: str = ""


def read_compute(path: Path, num_exits: int) -> Compute:
    """The content of `exits.json`; `num_exits` is 0 if unknown.

    Raises:
        RunError: the file is damaged, or does not have one positive number per exit.
    """
    content = read_json(path)
    expected = num_exits or max((len(costs) for costs in content.values() if isinstance(costs, list)), default=0)
    for key in ("flops", "milliseconds"):
        costs = content.get(key)
        if costs is not None and not _is_positive(costs, expected):
            raise RunError(f"{str(path)!r}: `{key}` is not {expected} positive numbers, one for each exit.")
    machine = content.get("machine") or {}
    if not isinstance(machine, Mapping):
        raise RunError(f"{str(path)!r}: `machine` is not an object.")
    words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in flatten(machine) if value != UNKNOWN)
    return Compute(_tuple(content.get("flops")), _tuple(content.get("milliseconds")), words)


def area(values: Sequence[float], costs: Sequence[float]) -> float | None:
    """Area under a measure against cost, between the first and the last of E exits, divided by that range of costs.

        area = sum over e < E of (a_e + a_{e+1}) / 2 * (c_{e+1} - c_e), divided by c_E - c_1

    With straight lines between exits that is the mean of the measure over all budgets of the range, each as likely as
    any other: between its lowest value and its highest.

    Args:
        values: of the measure at each exit, lowest first.
        costs: cumulative cost of each exit, in any unit.

    Returns:
        None for a single exit, or where an exit does not cost more than the one before.

    >>> area([0.5, 0.7, 1.0], [1, 2, 4])  # (0.6 * 1 + 0.85 * 2) / 3
    0.7666666666666666
    """
    steps = [after - before for before, after in pairwise(costs)]
    if not steps or min(steps) <= 0:
        return None
    heights = ((before + after) / 2 for before, after in pairwise(values))
    return math.fsum(height * step for height, step in zip(heights, steps, strict=True)) / (costs[-1] - costs[0])


def _is_positive(value: object, length: int) -> TypeGuard[list[float]]:
    return (
        isinstance(value, list)
        and len(value) == length
        and all(type(cost) in (int, float) and 0 < cost < math.inf for cost in value)
    )


def _tuple(value: list[float] | None) -> tuple[float, ...] | None:
    return None if value is None else tuple(value)
