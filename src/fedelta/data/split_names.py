"""Recognises usual names of training, validation and test sets."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The names that `datasets` knows (`datasets.data_files`), and further common ones; compared without regard to case.
_WORDS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words}
_SHARD = r"(?:[-_. ]?\d+(?:-of-\d+)?)?"
_WHOLE_NAME = re.compile(rf"({'|'.join(_KINDS)}){_SHARD}", re.IGNORECASE)

_SET = re.compile(rf"({'|'.join(_KINDS)})(?:[-_. ]?(?:set|data|dataset|split|images))?", re.IGNORECASE)


def split_kind(name: str) -> str | None:
    """One of "train", "validation" and "test"; None if `name` is not the name of a split.

    >>> split_kind("Training"), split_kind("dev"), split_kind("test_set"), split_kind("cat")
    ('train', 'validation', 'test', None)
    """
    match = _SET.fullmatch(name.strip())
    return None if match is None else _KINDS[match[1].casefold()]


def matching_splits(names: Iterable[str], split: str) -> list[str]:
    """The names that `split` may refer to: the same name, else the same in other case, else synonyms.

    >>> matching_splits(["Train", "val", "dev"], "train"), matching_splits(["val", "dev"], "validation")
    (['Train'], ['val', 'dev'])
    """
    candidates = list(names)
    same_word = [name for name in candidates if name.casefold() == split.casefold()]
    if split in candidates or same_word:
        return [split] if split in candidates else same_word
    return [name for name in candidates if split_kind(name) == split_kind(split) is not None]


def split_of_file(stem: str) -> tuple[str | None, bool]:
    """The split in the name of a file, in lower case, and whether the name is just the split, perhaps with a number.

    >>> split_of_file("Train-00000-of-00002"), split_of_file("speed-test"), split_of_file("latest")
    (('train', True), ('test', False), (None, False))
    """
    if whole := _WHOLE_NAME.fullmatch(stem):
        return whole[1].casefold(), True
    words = [word.casefold() for word in re.split(r"[^A-Za-z]+", stem)]
    splits = [word for word in words if word in _KINDS]
    return (splits[0], False) if len({_KINDS[word] for word in splits}) == 1 else (None, False)
