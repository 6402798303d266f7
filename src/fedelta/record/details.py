"""Reads the detailed measures of a finished model from `summary.json` and `confusion.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedelta.errors import RunError
from fedelta.record.files import Record, read_json
from fedelta.tasks.details import Confusion, Details, Values

NUM_EXAMPLES = "num_examples"  # the key beside the measures of a class or a client


def read_details(summary_path: Path, summary: Record, confusion_path: Path) -> Details | None:
    """Measures of the whole evaluated set, by class and by client; None if `summary.json` lacks them.

    Args:
        summary_path: of `summary`, for messages.
        summary: content of `summary.json`; empty while the run is unfinished.
        confusion_path: of `confusion.json`, which need not exist.

    Raises:
        RunError: a file has other content; says what is wrong.
    """
    if "measures" not in summary:
        return None
    try:
        return Details(
            {name: float(value) for name, value in _values(summary["measures"]).items() if value is not None},
            {name: _values(values) for name, values in summary.get("by_class", {}).items()},
            {int(client): _values(_unnamed(values)) for client, values in summary.get("by_client", {}).items()},
            _confusion(confusion_path) if confusion_path.exists() else None,
        )
    except (AttributeError, TypeError, ValueError) as error:
        expected = "numbers by name in `measures`, and by class and client in `by_class` and `by_client`"
        raise RunError(f"{str(summary_path)!r} does not hold {expected}: {error}.") from error


def _unnamed(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """`content` without the client's name, which is read from `partition.json`."""
    return {key: value for key, value in content.items() if key != "client_name"}


def _values(content: Mapping[str, Any]) -> Values:
    for name, value in content.items():
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"`{name}` is {value!r}")
    return dict(content)


def _confusion(path: Path) -> Confusion:
    content = read_json(path)
    names, counts = content.get("class_names"), content.get("counts")
    if not isinstance(names, list) or not isinstance(counts, list) or len(counts) != len(names) or not names:
        raise RunError(f"{str(path)!r} does not hold `class_names` and a row of `counts` for each of them.")
    for name, row in zip(names, counts, strict=True):
        if not isinstance(row, list) or len(row) != len(names) or not all(type(n) is int and n >= 0 for n in row):
            raise RunError(
                f"{str(path)!r}: `counts` of {name!r} are not {len(names)} whole numbers, one for each class."
            )
    num_models = content.get("num_models", 1)
    if type(num_models) is not int or num_models < 1:
        raise RunError(f"{str(path)!r}: `num_models` is {num_models!r}, and should be a whole number above 0.")
    return Confusion(tuple(map(str, names)), tuple(map(tuple, counts)), sum(map(sum, counts)), num_models)
