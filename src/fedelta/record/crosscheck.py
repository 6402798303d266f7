"""Checks whether the files written at the end of a run agree, by computing the same numbers in another way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from fedelta.tasks.base import Measure
from fedelta.tasks.details import Confusion, Details


def by_confusion(details: Details | None) -> list[str]:
    """Messages about classes whose measures in `summary.json` do not follow from the counts of `confusion.json`."""
    if details is None or details.confusion is None:
        return []
    return [
        f"`{key}` of class {name!r} is {details.by_class[name][key]!r} in `summary.json`, the counts of "
        f"`confusion.json` make it {value!r}"
        for name, values in _class_measures(details.confusion)
        for key, value in values.items()
        if _differs(details.by_class.get(name, {}).get(key), value)
    ]


def by_clients(personalization: Mapping[str, Any], measure: Measure) -> list[str]:
    """Messages about means, deviations and worst values in `personalization.json` that do not follow from its clients.

    Args:
        personalization: content of the file; Any: JSON values.
        measure: the primary measure of the run.
    """
    scopes = personalization.get("scopes")
    return [
        f"`{key}` {part} tuning {name!r} is {scope[part][key]!r} in `personalization.json`, its "
        f"clients make it {value!r}"
        for name, scope in (scopes.items() if isinstance(scopes, dict) else ())
        for part in ("before", "after")
        if (values := _values_of_clients(scope, f"{measure.name}_{part}"))
        for key, value in _over_clients(values, measure).items()
        if _differs(scope.get(part, {}).get(key), value)
    ]


def _class_measures(confusion: Confusion) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and measures of each class, without undefined measures.

    Measures of several models are means. All models answer the same examples, so the mean of their recalls follows from
    the sums; how often each gave an answer is not known, and so neither is the mean of their precisions.
    """
    num_answers = [sum(column) for column in zip(*confusion.counts, strict=True)]
    for place, (name, row) in enumerate(zip(confusion.class_names, confusion.counts, strict=True)):
        measures: dict[str, float] = {"num_examples": _per_model(sum(row), confusion.num_models)}
        if sum(row):
            measures["recall"] = row[place] / sum(row)
        if num_answers[place] and confusion.num_models == 1:
            measures["precision"] = row[place] / num_answers[place]
        yield name, measures


def _per_model(count: int, num_models: int) -> float:
    return count if num_models == 1 else count / num_models


def _values_of_clients(scope: object, key: str) -> list[float]:
    """The values of all clients; empty if one lacks a value, which the section of the page reports."""
    clients = scope.get("clients") if isinstance(scope, dict) else None
    values = [client.get(key) for client in clients if isinstance(client, dict)] if isinstance(clients, list) else []
    return [value for value in values if isinstance(value, int | float)] if None not in values else []


def _over_clients(values: Sequence[float], measure: Measure) -> dict[str, float]:
    worst = min(values) if measure.higher_is_better else max(values)
    deviation = {f"std_{measure.name}": stdev(values)} if len(values) > 1 else {}
    return {f"mean_{measure.name}": fmean(values), **deviation, f"worst_{measure.name}": worst}


def _differs(written: object, computed: float) -> bool:
    """Whether a number differs from the expected one by more than rounding; False if it is absent."""
    return isinstance(written, int | float) and not math.isclose(written, computed, rel_tol=1e-9, abs_tol=1e-9)
