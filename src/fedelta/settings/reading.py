"""Reads the sections of a table one by one, so that a typing error in one does not hide a wrong value in another."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from fedelta.settings.base import Settings, Table
from fedelta.settings.explain import annotation_of, chosen_in, explain, is_settings, unknown_key


def read_sections(table: Table, root: type[Settings]) -> tuple[Table, list[str]]:
    """The valid sections of `table`, and messages about the others.

    Args:
        table: of a whole file.
        root: the class that the table describes; its fields are the sections.
    """
    sections: Table = {}
    problems: list[str] = []
    for key, value in table.items():
        if key not in root.model_fields:
            problems.append(unknown_key(key, "", root, root))
            continue
        try:
            sections[key] = _reader(root, key).validate_python(value)
        except ValidationError as error:
            problems += explain(error.errors(), key, value, root)
    missing = [key for key, field in root.model_fields.items() if field.is_required() and key not in table]
    problems += [
        f"section `[{key}]` is missing" if _is_section(root, key) else f"`{key}` is missing" for key in missing
    ]
    return sections, problems


def _is_section(root: type[Settings], key: str) -> bool:
    annotation = annotation_of(root, key)
    return is_settings(annotation) or chosen_in(annotation) is not None


@cache  # cached: a comparison reads hundreds of configurations, and making a section's reader takes longer than reading
def _reader(root: type[Settings], section: str) -> TypeAdapter[Any]:
    field = root.model_fields[section]
    checked: Any = Annotated[field.annotation, field]
    return TypeAdapter(checked)
