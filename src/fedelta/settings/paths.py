"""Makes the paths in a configuration absolute when it is read, so that they mean the same everywhere.

A field that holds a path has one of these annotations: `FilePath`, `Source`, or `Annotated[str, InFull(...)]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from fedelta.settings.base import Settings, Table
from fedelta.settings.explain import is_settings

IN_PYTHON = "python:"
"""Begins the source of a model or of data that the caller gives as objects; after it, what they are called."""
GIVE_AGAIN = (
    "give model and data again: `fedelta.Experiment.from_run(RUN, fedelta.Objects(model, clients, test))` has "
    "`resume` and `evaluate`, `fedelta.Predictor.open(RUN, model=model)` predicts."
)


@dataclass(frozen=True)
class InFull:
    """Marks a text field that may hold a path.

    Args:
        write: turns the text into the stored form.
    """

    write: Callable[[str], str]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Applies `write` after the text has been checked."""
        return core_schema.no_info_after_validator_function(self.write, handler(source))


def is_in_python(source: str | None) -> bool:
    """Whether `source` stands for an object that the caller gives."""
    return source is not None and source.startswith(IN_PYTHON)


def in_full(path: str) -> str:
    """The absolute form of `path`, which need not exist."""
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:  # `~name`, but there is no such user
        return path


def in_full_where_it_exists(source: str) -> str:
    """The absolute form of `source` if it is an existing path; hub names and bundled names are unchanged."""
    full = in_full(source)
    return full if not is_in_python(source) and Path(full).exists() else source


FilePath = Annotated[str, InFull(in_full)]
Source = Annotated[str, InFull(in_full_where_it_exists)]


def table_in_full(table: Mapping[str, Any], owner: type[Settings]) -> Table:
    """A copy of an unchecked table, with absolute paths in the fields of `owner` that hold paths."""
    fields = owner.model_fields
    return {key: _value_in_full(value, fields[key]) if key in fields else value for key, value in table.items()}


def _value_in_full(value: object, field: FieldInfo) -> object:
    if isinstance(value, dict) and is_settings(field.annotation):
        return table_in_full(value, field.annotation)
    kinds = [field.metadata, *(getattr(kind, "__metadata__", ()) for kind in get_args(field.annotation))]
    marks = [mark for kind in kinds for mark in kind if isinstance(mark, InFull)]
    return marks[0].write(value) if marks and isinstance(value, str) else value
