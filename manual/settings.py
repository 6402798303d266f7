"""The page about every key of a configuration, from the docstrings of the settings."""

from __future__ import annotations

import inspect
import io
import json
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from fedelta.config import Config
from fedelta.settings import Settings
from fedelta.settings.explain import annotation_of, chosen_in, is_settings

_HEAD = """# Settings

Every key that a configuration can have, with its type, its default, and where the default is from.

A key is written in its section (`[tuning]`, then `r = 4`), or on the command line as `--set tuning.r=4`. Where a
section has a `name`, the name decides which other keys there are. `fedelta list` names the choices; methods of your own
add theirs ([Plug-ins](../plugins.md)).
"""
_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", NoneType: "nothing"}


@dataclass(frozen=True)
class Key:
    """A key of a configuration.

    Args:
        name: of the key, without its section.
        kind: what its value is, in words.
        default: as TOML; empty where the key has to be given.
        origin: of the default, from the comment at the field.
        meaning: a sentence from the docstring of its class.
    """

    name: str
    kind: str
    default: str
    origin: str
    meaning: str


def page() -> str:
    """The page, in Markdown."""
    parts = [_HEAD, "## Without a section\n", _table(Config, _plain(Config))]
    for section in Config.model_fields:
        if section not in _plain(Config):
            parts += _section(section, annotation_of(Config, section), 2)
    return "\n".join(parts)


def keys_of(owner: type[Settings]) -> list[Key]:
    """The keys of a class of settings, without its name."""
    meanings, origins = _meanings(owner), _origins(owner)
    return [
        Key(name, _kind(annotation_of(owner, name)), _default(owner, name), origins.get(name, ""), meanings[name])
        for name in owner.model_fields
        if name != "name" and name in meanings
    ]


def _section(path: str, annotation: Any, level: int) -> Iterator[str]:
    """A section with its classes, and those inside of it."""
    yield f"{'#' * level} {path}\n"
    if is_settings(annotation):
        yield from _class(annotation)
        for key in annotation.model_fields:
            if key not in _plain(annotation):
                yield from _section(f"{path}.{key}", annotation_of(annotation, key), level + 1)
        return
    classes = chosen_in(annotation).classes  # type: ignore[union-attr] # such a section has settings, or a choice
    within: dict[str, Any] = {}
    for kind, names in _by_class(classes).items():
        yield f"{'#' * (level + 1)} {path}.name = {' or '.join(json.dumps(name) for name in names)}\n"
        yield from _class(kind)
        within |= {key: annotation_of(kind, key) for key in kind.model_fields if key not in _plain(kind)}
    # What several classes share, such as the mean of every strategy, is shown once.
    for key, nested in within.items():
        yield from _section(f"{path}.{key}", nested, level + 1)


def _class(owner: type[Settings]) -> Iterator[str]:
    yield f"{(inspect.getdoc(owner) or '').splitlines()[0]}\n"
    if shown := keys_of(owner):
        yield _rows(shown)


def _plain(owner: type[Settings]) -> list[str]:
    """Keys of values that are not settings themselves."""
    kinds = {key: annotation_of(owner, key) for key in owner.model_fields}
    return [key for key, kind in kinds.items() if not is_settings(kind) and chosen_in(kind) is None]


def _table(owner: type[Settings], names: list[str]) -> str:
    return _rows([key for key in keys_of(owner) if key.name in names])


def _rows(keys: list[Key]) -> str:
    head = "| key | value | default | meaning |\n|---|---|---|---|\n"
    return head + "".join(
        f"| `{key.name}` | {key.kind} | {_shown_default(key)} | {_cell(key.meaning)} |\n" for key in keys
    )


def _shown_default(key: Key) -> str:
    return _cell(f"`{key.default}`" + (f" ({key.origin})" if key.origin else "")) if key.default else "has to be given"


def _by_class(classes: dict[str, type[Settings]]) -> dict[type[Settings], list[str]]:
    grouped: dict[type[Settings], list[str]] = {}
    for name, kind in classes.items():
        grouped.setdefault(kind, []).append(name)
    return grouped


def _kind(annotation: Any) -> str:
    """An annotation in words."""
    if (chosen := chosen_in(annotation)) is not None:
        return f"table with a `name`: {', '.join(f'`{name}`' for name in chosen.names)}"
    if is_settings(annotation):
        return "table"
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_kind(part) for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is tuple:
        return f"list of {_kind(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"table of {_kind(get_args(annotation)[1])}"
    return _WORDS.get(annotation, f"`{getattr(annotation, '__name__', annotation)}`")


def _default(owner: type[Settings], name: str) -> str:
    default = owner.model_fields[name].get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return ""
    if isinstance(default, Settings):
        return f'name = "{default.name}"' if hasattr(default, "name") else "its own"
    return "none" if default is None else json.dumps(default, default=str)


@cache
def _meanings(owner: type[Settings]) -> dict[str, str]:
    """Key to its text under `Args:` in the docstring of the class, or of a class that it derives from."""
    meanings: dict[str, str] = {}
    for kind in reversed(owner.__mro__):
        _, _, block = inspect.cleandoc(kind.__dict__.get("__doc__") or "").partition("\nArgs:\n")
        block = re.split(r"\n\n(?=\S)", block)[0]
        for entry in re.split(r"\n(?= {4}\S)", f"\n{block}"):
            names, _, text = " ".join(entry.split()).partition(": ")
            meanings |= {name.strip(): text for name in names.split(",")}
    return meanings


@cache
def _origins(owner: type[Settings]) -> dict[str, str]:
    """Key to the comment at the end of the line of its field, in the class or in one that it derives from."""
    origins: dict[str, str] = {}
    for kind in reversed(owner.__mro__):
        if issubclass(kind, Settings):
            field = ""
            for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(kind)).readline):
                if match := re.match(r"    (\w+): ", token.line):
                    field = match[1]
                note = token.string.removeprefix("#").strip()
                if token.type == tokenize.COMMENT and token.line.strip() != token.string and field:
                    origins |= {} if note.startswith("Any:") else {field: note}
    return origins


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
