"""Matches two lists of class names: those of the data with those of a head, an adapter or a test set."""

from __future__ import annotations

import re
from collections.abc import Sequence


def order_of(source: Sequence[str], target: Sequence[str]) -> tuple[int, ...] | None:
    """For each class of `target`, its label in `source`; None if the two lists hold different classes.

    Names are compared exactly first. If that fails, case, spaces, hyphens and underscores are ignored, provided that
    all names stay distinct.

    >>> order_of(["dog", "cat"], ["cat", "dog"])
    (1, 0)
    >>> order_of(["Very Good", "BAD"], ["bad", "very_good"])
    (1, 0)
    >>> order_of(["dog", "cat"], ["cat", "cow"]) is None
    True
    """
    return _order(source, target) or _order([loose(name) for name in source], [loose(name) for name in target])


def are_numbers(names: Sequence[str]) -> bool:
    """Whether the names only number the classes, from 0 or 1; `LABEL_0` is the default of transformers.

    >>> are_numbers(["LABEL_0", "LABEL_1"]), are_numbers(["1", "0"]), are_numbers(["class 0", "class 1"])
    (True, True, False)
    """
    return _numbered(names)[0] in ("", "label")


def order_by_number(source: Sequence[str], target: Sequence[str]) -> tuple[int, ...]:
    """For each class of `target`, its label in a `source` of equal length whose names cannot be matched.

    Names that end with a number are ordered by it, so that "2" comes before "10"; other names keep their order.

    >>> order_by_number(["LABEL_0", "LABEL_1"], ["class 2", "class 1"])
    (1, 0)
    """
    label_at = {place: label for label, place in enumerate(_numbered(source)[1])}
    return tuple(label_at[place] for place in _numbered(target)[1])


def _numbered(names: Sequence[str]) -> tuple[str | None, Sequence[int]]:
    """The common prefix and the position of each name, from 0, if the names are a prefix and numbers from 0 or 1.

    Otherwise the prefix is None and the positions are those in `names`.
    """
    matches = [re.fullmatch(r"(.*?)[\s_-]*([0-9]{1,9})", name.casefold().strip()) for name in names]
    parts = [(match[1], int(match[2])) for match in matches if match is not None]
    first = min((number for _, number in parts), default=0)
    if len({prefix for prefix, _ in parts}) != 1 or first > 1:
        return None, range(len(names))
    places = [number - first for _, number in parts]
    if sorted(places) != list(range(len(names))):
        return None, range(len(names))
    return parts[0][0], places


def loose(name: str) -> str:
    """The name without regard to case, spaces, hyphens and underscores.

    >>> loose("Very_Good ")
    'very good'
    """
    return re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def _order(source: Sequence[str], target: Sequence[str]) -> tuple[int, ...] | None:
    label_of = {name: label for label, name in enumerate(source)}
    is_permutation = len(source) == len(target) == len(label_of) and label_of.keys() == set(target)
    return tuple(label_of[name] for name in target) if is_permutation else None
