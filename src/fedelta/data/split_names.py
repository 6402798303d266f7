"""What people call the parts of a data set: training set, validation set, test set."""

from __future__ import annotations

import re
from collections.abc import Iterable

# As `datasets` knows them (`datasets.data_files`), and what else folders are called; compared without regard to case.
_WORDS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words}
_SHARD = r"(?:[-_. ]?\d+(?:-of-\d+)?)?"
_WHOLE_NAME = re.compile(rf"({'|'.join(_KINDS)}){_SHARD}", re.IGNORECASE)

_SET = re.compile(rf"({'|'.join(_KINDS)})(?:[-_. ]?(?:set|data|dataset|split|images))?", re.IGNORECASE)


def kind_of(name: str) -> str | None:
    """One of "train", "validation" and "test"; None for what is no name of a split.

    >>> kind_of("Training"), kind_of("dev"), kind_of("test_set"), kind_of("cat")
    ('train', 'validation', 'test', None)
    """
    found = _SET.fullmatch(name.strip())
    return None if found is None else _KINDS[found[1].casefold()]


def chosen(names: Iterable[str], wanted: str) -> list[str]:
    """Those of `names` that `wanted` may mean: the name itself, else the same in other case, else words for the same.

    >>> chosen(["Train", "val", "dev"], "train"), chosen(["val", "dev"], "validation")
    (['Train'], ['val', 'dev'])
    """
    known = list(names)
    same_word = [name for name in known if name.casefold() == wanted.casefold()]
    if wanted in known or same_word:
        return [wanted] if wanted in known else same_word
    return [name for name in known if kind_of(name) == kind_of(wanted) is not None]


def split_of_file(stem: str) -> tuple[str | None, bool]:
    """The split that the name of a file speaks of, in lower case, and whether it says nothing else but a number.

    >>> split_of_file("Train-00000-of-00002"), split_of_file("speed-test"), split_of_file("latest")
    (('train', True), ('test', False), (None, False))
    """
    if whole := _WHOLE_NAME.fullmatch(stem):
        return whole[1].casefold(), True
    words = [word.casefold() for word in re.split(r"[^A-Za-z]+", stem)]
    found = [word for word in words if word in _KINDS]
    return (found[0], False) if len({_KINDS[word] for word in found}) == 1 else (None, False)
