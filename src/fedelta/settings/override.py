"""`--set section.key=value`: puts values into a table before it is checked."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedelta.settings.base import Settings, Table
from fedelta.settings.explain import annotation_of, is_settings, settings_in


def override(table: Table, overrides: Iterable[str], root: type[Settings]) -> list[str]:
    """Puts `section.key=value` strings into `table`, as `--set` does; returns messages about invalid ones.

    Args:
        table: of the whole configuration; changed.
        overrides: values in TOML, or bare words; an empty value drops the key.
        root: the class that the table describes; a new `name` drops the fields that the new class lacks.
    """
    problems = []
    for text in sorted(overrides, key=lambda text: _names_first(text.partition("=")[0])):
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key or key.endswith("."):
            problems.append(f"`--set {text}`: expected `section.key=value`")
        elif problem := _put(table, key, toml_value(value) if value else None, root, origin=f"`--set {text}`"):
            problems.append(problem)
    return problems


def with_values(table: Table, values: Mapping[str, object], root: type[Settings]) -> tuple[Table, list[str]]:
    """A copy of `table` with `values` at their dotted keys, as by `--set`, and messages about invalid ones."""
    table = copy.deepcopy(table)
    problems = [
        _put(table, key, copy.deepcopy(values[key]), root, origin=f"`{key}`")
        for key in sorted(values, key=_names_first)
    ]
    return table, [problem for problem in problems if problem is not None]


def toml_value(text: str) -> object:
    """The value of `text` in TOML; the text itself if it is not TOML.

    >>> toml_value("0.1"), toml_value("lora")
    (0.1, 'lora')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # also for numbers with too many digits for Python, and for unclosed brackets
        return text


def _names_first(path: str) -> bool:
    """Sort key that puts names first, because a new name drops the fields of the previous class."""
    return not path.strip().endswith(".name")


def _put(table: Table, path: str, value: object, root: type[Settings], *, origin: str) -> str | None:
    """Sets the key at the dotted `path`, or drops it if `value` is None; returns the problem, if any."""
    *parents, key = path.split(".")
    for parent in parents:
        section: object = table.setdefault(parent, {})
        if not isinstance(section, dict):
            return f"{origin}: `{parent}` is a value, not a section"
        table = section
    annotation = _annotation(parents, root)
    stands_for_several = is_settings(annotation) and annotation.shorthand is not None
    if key == "name" and (table.get("name", value) != value or stands_for_several):
        # A new name drops the fields that the new class lacks.
        fields = _fields_of(annotation, value)
        if stands_for_several:  # and those for which the name stands
            fields |= {
                field for field in annotation.model_fields if annotation_of(annotation, field) != annotation.shorthand
            }
        for field in [field for field in table if field not in fields]:
            del table[field]
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
    return None


def _annotation(parents: Sequence[str], root: type[Settings]) -> Any:
    """The annotation at a dotted path; None if there is no such path."""
    annotation: Any = root
    for parent in parents:
        annotation = annotation_of(annotation, parent) if is_settings(annotation) else None
    return annotation


def _fields_of(annotation: Any, name: object) -> set[str]:
    """The fields of the class called `name`, or of all classes whose names are joined by +."""
    kinds = (settings_in(annotation, part.strip()) for part in str(name).split("+"))
    return {field for kind in kinds if kind is not None for field in kind.model_fields}
