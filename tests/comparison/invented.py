"""Comparisons that were never run, with figures that are easy to follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType

from fedelta.comparison.columns import IS_BEST, REASON, RUN, STATE, Column, measures
from fedelta.comparison.frames import FAILED, FINISHED, Row, cells_frame, curves_frame, trials_frame
from fedelta.comparison.result import Comparison
from fedelta.tasks.base import Measure
from fedelta.tasks.classification import ACCURACY

FAILURE = "RoundError: round 1: 0 of 3 replies are usable:\n  - NaN | <b>\nhint: lower it\n"
MIB = 2**20
METHODS = {"tuning.name": ["head", "lora"], "seed": ["1", "2"]}


def of_rows(
    rows: Sequence[Row],
    trials: Sequence[Row] = (),
    *,
    axes: Sequence[str],
    task_axes: tuple[str, ...] = (),
    searched: str | None = None,
    primary: Measure = ACCURACY,
    exits: bool = False,
    curves: Sequence[tuple[Row, Sequence[tuple[int, float]]]] = (),
    name: str = "invented <&> $x",
) -> Comparison:
    """A comparison of these cells and trials."""
    columns: tuple[Column, ...] = measures(primary)[: 3 if exits else 1]
    keys = [*axes, *([searched] if searched else [])]
    return Comparison(
        name=name,
        path=Path("out"),
        cell_axes=tuple(axes),
        task_axes=task_axes,
        searched=searched,
        primary=primary,
        measures=columns,
        frame=cells_frame(rows, keys, columns, [name for name in axes if name != "seed"]),
        trials=trials_frame(trials, keys, columns),
        curves=curves_frame(curves, axes, primary.name),
        citations=frozenset(),
        asked="[compare.over]\n",
    )


def cell(
    labels: Mapping[str, str],
    value: float | None = None,
    total_bytes: int = 100,
    state: str = FINISHED,
    **others: object,
) -> dict[str, object]:
    """The row of a cell: finished with this accuracy after so many bytes, or in another state without figures."""
    figures = {"accuracy": value, "total_bytes": total_bytes, "tuned_parameters": 10} if state == FINISHED else {}
    return {**labels, **figures, STATE: state, REASON: FAILURE if state == FAILED else None, RUN: "runs/x"} | others


def invented(
    axes: dict[str, list[str]],
    *,
    failed: tuple[str, ...] = (),
    task_axes: tuple[str, ...] = (),
    searched: bool = True,
    points: float = 2,
    relative_cost: float | None = None,
    epsilons: Mapping[str, float] = MappingProxyType({}),
    exits: bool = False,
    primary: Measure = ACCURACY,
) -> Comparison:
    """Each label of the first axis sends twice as much as the one before, and is 2 points better, or as many as said.

    A label `useless` is as accurate as the first. With `exits` all but the first have them. `epsilons` by label; each
    further seed spends 0.5 more.
    """
    rows, curves = [], []
    for number, labels in enumerate(product(*axes.values())):
        of_first = axes[next(iter(axes))].index(labels[0])
        gained = 0 if labels[0] == "useless" else points / 100 * of_first
        seed = number % 2
        epsilon = next((epsilons[label] for label in labels if label in epsilons), None)
        figures = {
            primary.name: 0.5 + gained + 0.01 * seed,
            "tuned_parameters": 1000 * 2**of_first,
            "bytes_per_client_round": MIB * 2**of_first / 4,
            "total_bytes": MIB * 2**of_first,
            "relative_cost": relative_cost,
            "epsilon": None if epsilon is None else epsilon + 0.5 * seed,
            "wall_seconds": 3.0,
            f"first_exit_{primary.name}": 0.2 + 0.02 * seed if exits and of_first else None,
            f"mean_exit_{primary.name}": 0.3 + 0.03 * seed if exits and of_first else None,
        }
        named = dict(zip(axes, labels, strict=True))
        is_lost = labels[0] in failed
        outcome = {STATE: FAILED, REASON: FAILURE} if is_lost else {**figures, STATE: FINISHED, REASON: None}
        rows.append({**named, **({"client.lr": 0.1} if searched else {}), **outcome, RUN: "runs/x"})
        curves += [] if is_lost else [(named, ((1, 0.1), (2, 0.5 + gained)))]
    trials = [{**rows[0], IS_BEST: True}, {**rows[-1], IS_BEST: False}] if searched else []
    return of_rows(
        rows,
        trials,
        axes=tuple(axes),
        task_axes=task_axes,
        searched="client.lr" if searched else None,
        primary=primary,
        exits=exits,
        curves=curves,
    )
