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
    """Whether names say nothing but the number of each label, from 0; `LABEL_0` is what transformers gives by default.

    >>> are_numbers(["LABEL_0", "LABEL_1"]), are_numbers(["0", "1"]), are_numbers(["1", "2"])
    (True, True, False)
    """
    return list(names) in ([f"LABEL_{label}" for label in range(len(names))], list(map(str, range(len(names)))))


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def _order(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    label_of = {name: label for label, name in enumerate(theirs)}
    is_permutation = len(theirs) == len(ours) == len(label_of) and label_of.keys() == set(ours)
    return tuple(label_of[name] for name in ours) if is_permutation else None
