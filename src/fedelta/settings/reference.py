"""Every key of a configuration as data: its type, its default with the origin of that, and its meaning.

All of it is read from the classes of the settings: types and defaults from the fields, meanings from the docstring's
`Args`, origins from the comment beside or directly above a field. `fedelta list SECTION` and the reference in the
documentation print it.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from fedelta.settings.base import Settings
from fedelta.settings.explain import annotation_of, chosen_in, is_settings
from fedelta.settings.registry import Chosen, names_of

_ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.*)")  # of the part `Args` of a docstring
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", NoneType: "nothing", Any: "value"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Key:
    """One key of a section.

    Args:
        path: dotted, as `--set` takes it, such as `tuning.r`.
        type: of its values, in words.
        default: as TOML writes it; "required" without a default, "nothing" where the key is left out.
        origin: where the default comes from, as far as that is stated; may be empty.
        meaning: sentences.
    """

    path: str
    type: str
    default: str
    origin: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """A table of a configuration, for one of the methods that it may name.

    Args:
        path: of the table, such as `strategy`; empty for the keys outside of tables.
        names: of the method in it, such as `fedlama`; empty for a table without methods.
        default: whether this is the method where the configuration names none.
        summary: the first line of the docstring.
        keys: in the order of the fields, without `name`.
    """

    path: str
    names: tuple[str, ...]
    default: bool
    summary: str
    keys: tuple[Key, ...]

    @property
    def title(self) -> str:
        """What `fedelta list` calls it: `strategy.fedlama`, or `client`."""
        return ".".join(part for part in (self.path, *self.names[:1]) if part)


def reference(root: type[Settings]) -> list[Section]:
    """All sections below `root`, each class once for each place, methods in the order of their registry."""
    return list({(section.path, section.names): section for section in _sections(root, "", (), False)}.values())


def _sections(owner: type[Settings], path: str, names: tuple[str, ...], default: bool) -> Iterator[Section]:
    fields = {name: field for name, field in owner.model_fields.items() if not (names and name == "name")}
    prefix = f"{path}." if path else ""
    keys = tuple(_key(owner, name, prefix) for name in fields if not _holds_sections(owner, name))
    if keys or names:
        yield Section(path, names, default, _summary(owner), keys)
    for name, field in fields.items():
        if not _holds_sections(owner, name):
            continue
        annotation = annotation_of(owner, name)
        for kind in _plain_settings(annotation):
            yield from _sections(kind, f"{prefix}{name}", (), False)
        if (chosen := chosen_in(annotation)) is not None:
            method = _first(field.default) if is_settings(annotation) else field.default
            yield from _methods(chosen, f"{prefix}{name}", method)


def _methods(chosen: Chosen, path: str, default: object) -> Iterator[Section]:
    for kind in dict.fromkeys(chosen.classes.values()):
        yield from _sections(kind, path, names_of(kind), type(default) is kind)


def _first(value: Settings) -> object:
    """The method in the first field of settings in which `name` stands for several fields."""
    return getattr(value, next(iter(type(value).model_fields)))


def _plain_settings(annotation: Any) -> list[type[Settings]]:
    """The classes of settings in an annotation that are not chosen by name, also one that may be left out."""
    if chosen_in(annotation) is not None and not is_settings(annotation):
        return []
    return [kind for kind in (annotation, *get_args(annotation)) if is_settings(kind)]


def _holds_sections(owner: type[Settings], name: str) -> bool:
    """Whether a field has tables of its own; the methods that `name` of `owner` stands for are listed there."""
    annotation, short = annotation_of(owner, name), chosen_in(owner)
    chosen = chosen_in(annotation)
    if chosen is not None and short is not None and chosen.registries == short.registries:
        return False
    return chosen is not None or bool(_plain_settings(annotation))


def _key(owner: type[Settings], name: str, prefix: str) -> Key:
    field = owner.model_fields[name]
    words = _in_words(annotation_of(owner, name))
    return Key(f"{prefix}{name}", words, _default(field), _origins(owner).get(name, ""), _meanings(owner).get(name, ""))


def _default(field: FieldInfo) -> str:
    """A default as TOML writes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "nothing"
    if isinstance(value, Settings):
        return json.dumps(getattr(value, "name", ""))
    return json.dumps(value, ensure_ascii=False)


def _in_words(annotation: Any) -> str:
    """An annotation in words: "whole number >= 1", "'auto' or list of texts"."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if (chosen := chosen_in(annotation)) is not None:
        return chosen.registries[0].kind.noun
    if origin is Annotated:
        return " ".join([_in_words(parts[0]), *_limits(parts[1:])])
    if origin is Literal:
        return " or ".join(json.dumps(value) for value in parts)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_in_words(part) for part in parts if part is not NoneType))
    if origin is tuple:
        return f"list of {_in_words(parts[0])}"
    if origin is dict:
        return f"table of {_in_words(parts[1])}"
    return _WORDS.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _limits(metadata: tuple[object, ...]) -> list[str]:
    """The bounds in the metadata of an annotation, such as ">= 1"."""
    marks = [mark for item in metadata for mark in (item.metadata if isinstance(item, FieldInfo) else [item])]
    found = [
        f"{sign} {getattr(mark, name)}" for mark in marks for name, sign in _BOUNDS.items() if name in _fields_of(mark)
    ]
    return [" and ".join(found)] if found else []


def _fields_of(mark: object) -> frozenset[str]:
    return frozenset(getattr(mark, "__dataclass_fields__", ()))


def _summary(owner: type[Settings]) -> str:
    return (inspect.getdoc(owner) or "").partition("\n")[0]


@cache
def _meanings(owner: type[Settings]) -> Mapping[str, str]:
    """Field to its entry in the docstrings of the class and of those that it derives from."""
    meanings: dict[str, str] = {}
    for kind in reversed(owner.__mro__):
        if kind.__doc__ and issubclass(kind, Settings):
            meanings |= _entries(inspect.cleandoc(kind.__doc__))
    return meanings


def _entries(doc: str) -> dict[str, str]:
    """Name to text, of the part `Args` of a docstring."""
    lines: dict[str, list[str]] = {}
    names: list[str] = []
    for line in doc.partition("\nArgs:\n")[2].splitlines():
        if line and not line.startswith("    "):
            break
        if entry := _ENTRY.fullmatch(line):
            names = entry[1].split(", ")
            lines |= {name: [entry[2]] for name in names}
        else:
            for name in names:
                lines[name].append(line.strip())
    return {name: _sentence(" ".join(part for part in parts if part)) for name, parts in lines.items()}


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


@cache
def _origins(owner: type[Settings]) -> Mapping[str, str]:
    """Field to the comment beside it or, without one, directly above it; the class nearest to `owner` decides."""
    origins: dict[str, str] = {}
    for kind in reversed(owner.__mro__):
        if issubclass(kind, Settings) and kind is not Settings:
            own = _comments(kind)
            # A field that is declared anew has a new default.
            origins = {
                name: text for name, text in origins.items() if name not in vars(kind).get("__annotations__", {})
            }
            origins |= own
    return origins


def _comments(kind: type[Settings]) -> dict[str, str]:
    """Field to its comment in the source of one class; empty where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        return {}
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, str] = {}
    body = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)).body
    for node in body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        above: list[str] = []
        row = node.lineno - 1
        while row in comments and lines[row - 1].lstrip().startswith("#"):
            above.insert(0, comments[row])
            row -= 1
        parts = [*above, comments.get(node.end_lineno or node.lineno, "")]
        if text := "; ".join(part for part in (" ".join(above), parts[-1]) if part):
            found[node.target.id] = text
    return found


def described(sections: Iterable[Section], width: int) -> Iterator[str]:
    """Each section as plain text: its summary, and for every key its type, default, origin and meaning.

    Args:
        sections: in their order.
        width: columns of a line.
    """
    for section in sections:
        names = " or ".join(f'"{name}"' for name in section.names)
        head = f"[{section.path}]" if section.path else "at the top of the file"
        chosen = f" name = {names}{' (default)' if section.default else ''}" if names else ""
        lines = [f"{head}{chosen}", *_wrapped(section.summary, width, "  ")]
        for key in section.keys:
            origin = f" ({key.origin})" if key.origin else ""
            given = "required" if key.default == "required" else f"default {key.default}{origin}"
            lines += [f"  {key.path.rpartition('.')[2]}: {key.type}, {given}", *_wrapped(key.meaning, width, "      ")]
        yield "\n".join([*lines, ""])


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, max(width, 40), initial_indent=indent, subsequent_indent=indent, break_long_words=False)
