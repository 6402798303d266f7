"""Reads the records of `rounds.jsonl`, and checks everything that the report shows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from fedelta.errors import RunError
from fedelta.record.files import Record
from fedelta.record.promise import Promise
from fedelta.record.rundir import MODEL, RunDirectory
from fedelta.record.sites import site_problems
from fedelta.tasks.base import Measure, Task

_ROUND_FIELDS = frozenset({"round", "measures", "cohort", "rejections", "cumulative_bytes"})
_BY_GROUP = ("interval_rounds", "unit_discrepancy")
_WINDOW_FIELDS = frozenset({"num_examples", "synced_fraction", *_BY_GROUP})


def checked_rounds(run: RunDirectory, task: Task, num_groups: int, promise: Promise | None = None) -> list[Record]:
    """The records of all finished rounds, checked for everything that the report needs.

    Args:
        run: the directory.
        task: of the run.
        num_groups: number of groups of the model; 0 if unknown.
        promise: what the run guarantees; None without privacy.

    Raises:
        RunError: a record lacks a value, or has one of another type; names the line.
    """
    records = run.read_rounds()
    in_windows = any("interval_rounds" in record for record in records)
    required = _ROUND_FIELDS | {f"train_{task.loss.name}"} | (_WINDOW_FIELDS if in_windows else frozenset())
    num_exits = _num_exits(records, task.primary)
    for number, record in enumerate(records, start=1):
        missing = sorted(required - record.keys())
        problems = [f"lacks {', '.join(missing)}"] if missing else _measure_problems(record, task, num_exits)
        problems += site_problems(record)
        problems += _privacy_problems(record) if promise is not None else []
        for key in _BY_GROUP if in_windows and num_groups and not missing else ():
            if not _is_numbers(record[key], num_groups):
                problems.append(f"`{key}` is not {num_groups} numbers, one for each of the `groups` in {MODEL}")
        if problems:
            raise RunError(f"{str(run.rounds.path)!r}, line {number}: {problems[0]}.")
    return records


def _measure_problems(record: Record, task: Task, num_exits: int) -> list[str]:
    """Messages about the measures of a round; a model with exits needs the primary measure at each exit."""
    measures, at_exits = record["measures"], record.get("measures_by_exit")
    if measures is None:
        return ["`measures_by_exit` without `measures`"] if at_exits is not None else []
    required = [task.primary.name, task.loss.name]
    if not isinstance(measures, dict) or not all(_is_number(measures.get(name)) for name in required):
        return [f"`measures` is {measures!r}, expected numbers, {' and '.join(dict.fromkeys(required))} among them"]
    if at_exits is None and not num_exits:
        return []
    values = at_exits.get(task.primary.name) if isinstance(at_exits, dict) else None
    if num_exits and _is_numbers(values, num_exits) and all(_may_be(value, task.primary) for value in values):
        return []
    kind = "fractions" if task.primary.is_fraction else "numbers"
    expected = f"as many {kind} by `{task.primary.name}` in every evaluated round, one for each exit"
    return [f"`measures_by_exit` is {at_exits!r}, expected {expected}"]


def _privacy_problems(record: Record) -> list[str]:
    """Messages about the epsilons of a round under privacy, which may be unknown, and its clipping norm."""
    epsilons = [record.get(key, "absent") for key in ("epsilon", "epsilon_rdp")]
    if all(epsilon is None or (_is_number(epsilon) and epsilon >= 0) for epsilon in epsilons) and _is_number(
        record.get("clipping_norm")
    ):
        return []
    return ["`epsilon`, `epsilon_rdp` or `clipping_norm` are not as a run under privacy writes them"]


def _num_exits(records: Sequence[Record], primary: Measure) -> int:
    """The number of exits in the last evaluated round; 0 without exits."""
    by_exit = (record.get("measures_by_exit") for record in reversed(records))
    lists = (measures.get(primary.name) for measures in by_exit if isinstance(measures, dict))
    return next((len(values) for values in lists if isinstance(values, list)), 0)


def _may_be(value: float, measure: Measure) -> bool:
    return not measure.is_fraction or 0 <= value <= 1


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float)


def _is_numbers(value: object, number: int) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == number and all(map(_is_number, value))
