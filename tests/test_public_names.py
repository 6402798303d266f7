"""The public names: sorted, lazy, all there, all documented, and all that a configuration can name among them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import fedelta
from fedelta.catalog import ALL
from fedelta.config import Config
from fedelta.settings import Settings
from fedelta.settings.explain import annotation_of, is_settings
from fedelta.settings.registry import imported


def test_public_names_are_sorted_and_unique():
    assert list(fedelta.__all__) == sorted(set(fedelta.__all__))


def test_public_names_resolve_to_documented_definitions_of_the_package():
    problems = {}
    for name in fedelta.__all__:
        value = getattr(fedelta, name)
        assert value is getattr(fedelta, name)
        text = (value.__doc__ or "").strip()
        # A dataclass without a docstring gets its signature as one. A constant or a type alias has none.
        if is_definition(value) and (
            not text or text.startswith(f"{name}(") or not value.__module__.startswith("fedelta.")
        ):
            problems[name] = (value.__module__, text)
    assert not problems


def test_type_checkers_see_the_same_names_from_the_same_modules():
    [block] = [node for node in ast.parse(source()).body if isinstance(node, ast.If)]
    seen = {
        alias.asname: f"{node.module}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"fedelta.{module}" for name, module in fedelta._HOMES.items()}


def test_every_class_and_protocol_that_a_configuration_can_name_is_public():
    public = {getattr(fedelta, name) for name in fedelta.__all__}
    kinds = [registry.kind.protocol for registry in ALL]
    named = {*(kind for registry in ALL for kind in registry.values()), *map(imported, kinds), *sections(Config)}
    assert not {kind.__name__ for kind in named - public}


def test_dir_lists_the_public_names_and_nothing_else():
    visible = {name for name in dir(fedelta) if not (name.startswith("__") and name.endswith("__"))}
    assert visible == {name for name in fedelta.__all__ if not name.startswith("__")}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        fedelta.no_such_name  # noqa: B018


def sections(owner: type[Settings]) -> Iterator[type[Settings]]:
    """The classes of settings that `owner` holds, at any depth, without those that a name picks."""
    for key in owner.model_fields:
        for kind in parts(annotation_of(owner, key)):
            yield kind
            yield from sections(kind)


def parts(annotation: Any) -> list[type[Settings]]:
    return [annotation] if is_settings(annotation) else [kind for part in get_args(annotation) for kind in parts(part)]


def source() -> str:
    return Path(fedelta.__file__).read_text(encoding="utf-8")


def is_definition(value: object) -> bool:
    """Whether `value` is a class or a function: a constant or a type alias has no docstring of its own."""
    return (inspect.isclass(value) and not hasattr(value, "__origin__")) or inspect.isroutine(value)
