"""Classes of two origins, brought together by name: those of a head and of the data, of an adapter, of a test set."""

from __future__ import annotations

import re
from collections.abc import Sequence


def order_of(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """For each class of `ours` its label among `theirs`; None where these are not the same classes.

    Names are the same where they are equal, or else where they differ in case, spaces, hyphens and underscores alone
    and these are not what tells two classes apart.

    >>> order_of(["dog", "cat"], ["cat", "dog"])
    (1, 0)
    >>> order_of(["Very Good", "BAD"], ["bad", "very_good"])
    (1, 0)
    >>> order_of(["dog", "cat"], ["cat", "cow"]) is None
    True
    """
    return _order(theirs, ours) or _order([_loose(name) for name in theirs], [_loose(name) for name in ours])


def are_numbers(names: Sequence[str]) -> bool:
    """Whether names say nothing but numbers, from 0 or 1; `LABEL_0` is what transformers gives by default.

    >>> are_numbers(["LABEL_0", "LABEL_1"]), are_numbers(["1", "0"]), are_numbers(["class 0", "class 1"])
    (True, True, False)
    """
    return _numbered(names)[0] in ("", "label")


def order_by_number(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...]:
    """For each class of `ours` its label among as many of `theirs`, where names cannot be matched.

    By the numbers that names end with, so that "10" does not come before "2"; names without stand in their order.

    >>> order_by_number(["LABEL_0", "LABEL_1"], ["class 2", "class 1"])
    (1, 0)
    """
    label_at = {place: label for label, place in enumerate(_numbered(theirs)[1])}
    return tuple(label_at[place] for place in _numbered(ours)[1])


def _numbered(names: Sequence[str]) -> tuple[str | None, Sequence[int]]:
    """What all names begin with, where the rest numbers them from 0 or 1, else None; and the place of each, from 0."""
    found = [re.fullmatch(r"(.*?)[\s_-]*([0-9]{1,9})", name.casefold().strip()) for name in names]
    parts = [(each[1], int(each[2])) for each in found if each is not None]
    first = min((number for _, number in parts), default=0)
    if len({prefix for prefix, _ in parts}) != 1 or first > 1:
        return None, range(len(names))
    places = [number - first for _, number in parts]
    if sorted(places) != list(range(len(names))):
        return None, range(len(names))
    return parts[0][0], places


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def _order(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    label_of = {name: label for label, name in enumerate(theirs)}
    is_permutation = len(theirs) == len(ours) == len(label_of) and label_of.keys() == set(ours)
    return tuple(label_of[name] for name in ours) if is_permutation else None
