"""Turns pydantic's errors into messages that name the key, the observed and the expected value.

All functions take the root of the configuration as an argument, so that this file needs to know no section.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeGuard, get_args, get_origin

from pydantic_core import ErrorDetails

from fedelta.settings.base import Settings
from fedelta.settings.loading import INSTALLED
from fedelta.settings.registry import Chosen, names_of

_NUM_SHOWN = 200  # characters of a value
# What other tools call a key.
_SYNONYMS = {
    "learning_rate": "lr", "epochs": "local_epochs", "num_epochs": "local_epochs", "num_train_epochs": "local_epochs",
    "rounds": "num_rounds", "num_server_rounds": "num_rounds", "rank": "r", "bs": "batch_size", "nodes": "num_clients",
    "clients": "num_clients", "num_supernodes": "num_clients", "num_partitions": "num_clients",
}  # fmt: skip
_ALMOST = 0.8  # similarity of a key that was misspelt rather than misplaced
_NUM_NAMED = 4  # sections or methods that have a key
# pydantic's words for types, in TOML's.
_PLAIN = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "a text",
    "a valid tuple": "a list",
    "a valid dictionary": "a table",
    "a valid list": "a list",
}


def explain(errors: Iterable[ErrorDetails], section: str, value: object, root: type[Settings]) -> list[str]:
    """One message per key.

    Args:
        errors: of the section.
        section: its name.
        value: the content of the section.
        root: the class with the section as a field.
    """
    explained: dict[str, str] = {}
    for error in errors:
        path, parent, annotation = _locate(section, value, error["loc"], root)
        kind, entry = error["type"], error["input"]
        expectation = _expectation(error)
        if kind == "extra_forbidden":
            explained[path] = unknown_key(path.rpartition(".")[2], path.rpartition(".")[0], parent, root)
        elif kind == "missing":
            explained[path] = f"`{path}` is missing"
        elif kind == "no_name":
            explained[path] = f"`{path}.name` is missing, expected one of {', '.join(names_in(annotation))}"
        elif kind == "unknown_name":
            explained[path] = _unknown_choice(f"{path}.name", entry["name"], names_in(annotation), root)
        elif kind in ("value_error", "unregistered"):
            explained[path] = f"`{path}`: {expectation}"
        elif kind in ("no_table", "model_type"):
            explained[path] = _bare_value(path, entry, names_in(annotation))
        elif path not in explained:
            explained[path] = f"`{path}` is {_shortened(entry)}, expected: {expectation}{_without_quotes(error)}"
        elif expectation not in explained[path]:
            explained[path] += f" or {expectation}"
    # Of a value that may have several forms, what is wrong with a part of it says more than what other forms would be.
    return [text for path, text in explained.items() if not any(other.startswith(f"{path}.") for other in explained)]


def _expectation(error: ErrorDetails) -> str:
    if error["type"] == "too_short":
        kind = "table" if error["ctx"]["field_type"] == "Dictionary" else "list"
        return f"a {kind} with at least {error['ctx']['min_length']}"
    expectation = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return _PLAIN.get(expectation, expectation)


def _without_quotes(error: ErrorDetails) -> str:
    """Advice for a number that was written as a text."""
    is_number = error["type"] in ("int_type", "float_type") and isinstance(error["input"], str)
    return ", without quotes" if is_number and error["input"].replace(".", "", 1).isdecimal() else ""


def _shortened(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _NUM_SHOWN else f"{text[: _NUM_SHOWN - 3]}..."


def unknown_key(key: str, parent: str, owner: type[Settings], root: type[Settings]) -> str:
    """The message for a key that `owner`, at the dotted path `parent`, does not have; names where it belongs.

    Args:
        key: without its path.
        parent: path of the section that it stands in; empty for the top level.
        owner: the class of this section.
        root: of the configuration.
    """
    prefix = f"{parent}." if parent else ""
    places = places_of(key, root)
    keys = [*(["name"] if owner.shorthand is not None else []), *owner.model_fields]
    nearest = get_close_matches(key, keys, n=1)
    is_typo = parent and get_close_matches(key, keys, n=1, cutoff=_ALMOST)
    if names := places.pop(parent, []):
        advice = f"it is a key of `{parent}.name` = {', '.join(names[:_NUM_NAMED])}"
    elif synonyms := places_of(_SYNONYMS.get(key, ""), root):
        advice = f"here it is {' or '.join(f'`{place}.{_SYNONYMS[key]}`' for place in [*synonyms][:_NUM_NAMED])}"
    elif places and not is_typo:
        advice = f"it belongs in {' or '.join(f'`[{place}]`' for place in [*places][:_NUM_NAMED])}"
    else:
        advice = f"did you mean `{prefix}{nearest[0]}`?" if nearest else f"known: {', '.join(keys)}"
    return f"`{prefix}{key}` is unknown; {advice}"


def places_of(key: str, root: type[Settings]) -> dict[str, list[str]]:
    """The sections below `root` that have a key, as dotted paths, each with the names of the methods that have it."""
    places: dict[str, list[str]] = {}
    for path, kind in _sections(root, ""):
        if key in kind.model_fields and key != "name":
            places.setdefault(path, []).extend(names_of(kind))
    return places


def _sections(owner: type[Settings], prefix: str) -> Iterator[tuple[str, type[Settings]]]:
    """Every section below `owner`, as a dotted path, with each class that it may be."""
    for field in owner.model_fields:
        for kind in _all_settings_in(annotation_of(owner, field)):
            yield f"{prefix}{field}", kind
            yield from _sections(kind, f"{prefix}{field}.")


def named_choices(root: type[Settings]) -> dict[str, list[str]]:
    """Every key below `root` that takes a registered name, such as `strategy.mean.name`, and its names."""
    return dict(_named_choices(root, ""))


def names_in(annotation: Any) -> list[str]:
    """The names that a field with this annotation accepts; empty if its value has no name."""
    if (chosen := chosen_in(annotation)) is not None:
        return chosen.names
    return [] if not is_settings(annotation) else list(names_of(annotation))


def settings_in(annotation: Any, name: object = None) -> type[Settings] | None:
    """The class of settings in a field with this annotation; if the field has several, the one called `name`."""
    if (chosen := chosen_in(annotation)) is not None:
        return chosen.get(name)
    return annotation if is_settings(annotation) else None


def chosen_in(annotation: Any) -> Chosen | None:
    """The `Chosen` in an annotation; None if there is none."""
    if is_settings(annotation):
        return None if annotation.shorthand is None else chosen_in(annotation.shorthand)
    if get_origin(annotation) is Annotated:
        return next((mark for mark in get_args(annotation)[1:] if isinstance(mark, Chosen)), None)
    return None


def annotation_of(owner: type[Settings], key: str) -> Any:
    """The annotation of a field, with its metadata; None if there is no such field."""
    field = owner.model_fields.get(key)
    if field is None:
        return None
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _named_choices(owner: type[Settings], prefix: str) -> Iterator[tuple[str, list[str]]]:
    for key in owner.model_fields:
        annotation = annotation_of(owner, key)
        if names := names_in(annotation):
            yield f"{prefix}{key}.name", names
        for kind in _all_settings_in(annotation):
            yield from _named_choices(kind, f"{prefix}{key}.")


def _all_settings_in(annotation: Any) -> list[type[Settings]]:
    """The classes of settings that a field with this annotation may hold, except those inside a tuple."""
    if is_settings(annotation):
        return [annotation]
    chosen = chosen_in(annotation)
    return [] if chosen is None else list(dict.fromkeys(chosen.classes.values()))


def _locate(
    section: str, value: Any, location: Sequence[str | int], root: type[Settings]
) -> tuple[str, type[Settings], Any]:
    """Dotted path of a pydantic location, the class that contains its last part, and that part's annotation."""
    path, parent = section, root
    annotation = annotation_of(root, section)
    for part in location:
        if isinstance(value, list) and isinstance(part, int):
            path, value, annotation = f"{path}.{part}", value[part], _item(annotation)
        elif isinstance(value, dict) or isinstance(part, int):
            # A table without a class may be the short form of several settings (`codec.name`).
            owner = annotation if is_settings(annotation) else settings_in(annotation, _name_in(value))
            parent = parent if owner is None else owner
            annotation = None if owner is None else annotation_of(owner, str(part))
            if isinstance(value, dict) and part not in value and (owner is None or chosen_in(annotation) is not None):
                continue  # the user did not write this part of the path: it names one of several forms
            path += f".{part}"
            value = value.get(part) if isinstance(value, dict) else None
    return path, parent, annotation


def _name_in(value: object) -> object:
    return value.get("name") if isinstance(value, dict) else None


def is_settings(annotation: Any) -> TypeGuard[type[Settings]]:
    """Whether an annotation is one class of settings."""
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _item(annotation: Any) -> Any:
    """The annotation of a tuple's items."""
    if get_origin(annotation) is Annotated:
        return _item(get_args(annotation)[0])
    return next(iter(get_args(annotation)), None)


def _bare_value(path: str, value: object, names: Sequence[str]) -> str:
    """The message for a plain value where a table of settings belongs; names the key that was probably meant."""
    if isinstance(value, type):
        return f"`{path}` is the class {value.__name__}, expected an object: `{value.__name__}()`"
    if not names:
        return f"`{path}` is {value!r}, expected: a table of settings"
    name = value if value in names else names[0]
    return f"`{path}` is {value!r}, expected a table; give `{path}.name`, such as `{path}.name = {name!r}`"


def _unknown_choice(path: str, name: object, choices: Iterable[str], root: type[Settings]) -> str:
    choices = list(choices)
    nearest = get_close_matches(str(name), choices, n=1)
    elsewhere = [key for key, names in named_choices(root).items() if name in names]
    advice = f"; did you mean {nearest[0]!r}?" if nearest else ""
    advice = f"; {name!r} is a choice of `{elsewhere[0]}`" if elsewhere else advice
    if INSTALLED.broken:
        reasons = " ".join(INSTALLED.broken.values())
        advice += f"; it may be in an installed plug-in that cannot be used: {reasons}"
    return f"`{path}` is {name!r}, expected one of {', '.join(choices)}{advice}"
