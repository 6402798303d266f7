"""What pydantic finds wrong in a table, in our words: where, what was found, what was expected.

All functions take the root of the configuration as an argument, so that this file needs to know no section.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeGuard, get_args, get_origin

from pydantic_core import ErrorDetails

from fedelta.settings.base import Settings

_NUM_SHOWN = 200  # characters of a value


def explain(errors: Iterable[ErrorDetails], section: str, value: object, root: type[Settings]) -> list[str]:
    """One problem for each place.

    Args:
        errors: of the section.
        section: its name.
        value: what was given for it.
        root: the class whose field it is.
    """
    explained: dict[str, str] = {}
    for error in errors:
        path, parent, annotation = _locate(section, value, error["loc"], root)
        kind, given, details = error["type"], error["input"], error.get("ctx", {})
        expectation = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        if kind == "extra_forbidden":
            explained[path] = unknown_key(path.rpartition(".")[2], path.rpartition(".")[0], parent)
        elif kind == "missing":
            explained[path] = f"`{path}` is missing"
        elif kind == "union_tag_not_found":
            explained[path] = f"`{path}.name` is missing, expected one of {', '.join(members(annotation))}"
        elif kind == "union_tag_invalid":
            explained[path] = _unknown_choice(f"{path}.name", details["tag"], members(annotation), root)
        elif kind == "value_error":
            explained[path] = f"`{path}`: {expectation}"
        elif kind in ("model_attributes_type", "model_type"):
            explained[path] = _bare_value(path, given, list(members(annotation)))
        elif path not in explained:
            explained[path] = f"`{path}` is {_shortened(given)}, expected: {expectation}"
        elif expectation not in explained[path]:
            explained[path] += f" or {expectation}"
    return list(explained.values())


def _shortened(given: object) -> str:
    text = repr(given)
    return text if len(text) <= _NUM_SHOWN else f"{text[: _NUM_SHOWN - 3]}..."


def unknown_key(key: str, parent: str, owner: type[Settings]) -> str:
    """That `owner`, at the dotted path `parent`, has no such key; with the nearest that it has."""
    prefix = f"{parent}." if parent else ""
    known = [*(["name"] if owner.shorthand is not None else []), *owner.model_fields]
    nearest = get_close_matches(key, known, n=1)
    advice = f"did you mean `{prefix}{nearest[0]}`?" if nearest else f"known: {', '.join(known)}"
    return f"`{prefix}{key}` is unknown; {advice}"


def named_choices(root: type[Settings]) -> dict[str, list[str]]:
    """Every key below `root` that takes one of a few names, such as `strategy.mean.name`, and these names."""
    return dict(_named_choices(root, ""))


def members(annotation: Any) -> dict[str, type[Settings]]:
    """Name to class of a union of settings, or of one that has a name; nothing for any other annotation."""
    kinds = settings_of(annotation)
    if len(kinds) == 1 and kinds[0].shorthand is not None:
        return members(kinds[0].shorthand)
    named = [kind for kind in kinds if "name" in kind.model_fields]
    return {name: kind for kind in named for name in get_args(kind.model_fields["name"].annotation)}


def settings_of(annotation: Any) -> list[type[Settings]]:
    """The classes of settings that a field of this annotation may hold; not those inside of a tuple."""
    if get_origin(annotation) is Annotated:
        return settings_of(get_args(annotation)[0])
    kinds = get_args(annotation) or (annotation,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)]


def _named_choices(owner: type[Settings], prefix: str) -> Iterator[tuple[str, list[str]]]:
    for key, field in owner.model_fields.items():
        if kinds := members(field.annotation):
            yield f"{prefix}{key}.name", list(kinds)
        for kind in settings_of(field.annotation):
            yield from _named_choices(kind, f"{prefix}{key}.")


def _locate(
    section: str, value: Any, location: Sequence[str | int], root: type[Settings]
) -> tuple[str, type[Settings], Any]:
    """Dotted path of a pydantic location, the settings around its last part, and that part's annotation.

    Pydantic puts the chosen member of a union into the location; the user never wrote it there.
    """
    path, parent = section, root
    annotation: Any = root.model_fields[section].annotation
    for part in location:
        kinds = members(annotation)
        if part in kinds:
            annotation = kinds[str(part)]
        elif isinstance(value, list) and isinstance(part, int):
            path, value, annotation = f"{path}.{part}", value[part], _item(annotation)
        elif isinstance(value, dict) or isinstance(part, int):
            fields = annotation.model_fields if is_settings(annotation) else {}
            parent, annotation = annotation, fields[part].annotation if part in fields else None
            if isinstance(value, dict) and part not in value and members(annotation):
                continue  # one name stands for several settings (`codec.name`): the user never wrote which
            path += f".{part}"
            value = value.get(part) if isinstance(value, dict) else None
    return path, parent, annotation


def is_settings(annotation: Any) -> TypeGuard[type[Settings]]:
    """Whether an annotation is one class of settings."""
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _item(annotation: Any) -> Any:
    """What a tuple annotation holds."""
    if get_origin(annotation) is Annotated:
        return _item(get_args(annotation)[0])
    return next(iter(get_args(annotation)), None)


def _bare_value(path: str, given: object, names: Sequence[str]) -> str:
    """That a value stands where several settings belong; with the key that is meant, where there is one."""
    if not names:
        return f"`{path}` is {given!r}, expected: a table of settings"
    name = given if given in names else names[0]
    return f"`{path}` is {given!r}, expected a table; give `{path}.name`, such as `{path}.name = {name!r}`"


def _unknown_choice(path: str, given: object, known: Iterable[str], root: type[Settings]) -> str:
    known = list(known)
    nearest = get_close_matches(str(given), known, n=1)
    elsewhere = [key for key, names in named_choices(root).items() if key != path and given in names]
    advice = f"; did you mean {nearest[0]!r}?" if nearest else ""
    advice = f"; {given!r} is a choice of `{elsewhere[0]}`" if elsewhere else advice
    return f"`{path}` is {given!r}, expected one of {', '.join(known)}{advice}"
