"""What the names of files and folders say: `data.file_pattern`, `data.test_files`, `data.folders`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import Formatter

CLIENT = "client"  # field of a pattern, level of folders, and column of the rows
LABEL = "label"
SPLIT = "split"
UNUSED = "*"  # a level that says nothing
_LEVELS = (SPLIT, CLIENT, LABEL, UNUSED)


@dataclass(frozen=True)
class Naming:
    """What the names of files and folders say.

    Args:
        pattern: `data.file_pattern` (see `expression`); None says nothing.
        test_files: glob of the files that are the test set, as `PurePath.match` reads it.
        train_split: name of the training set.
        test_split: name of the test set.
        folders: `data.folders` (see `levels_in`); None: to be found out.
        paths_in: columns of tables that hold names of files, from the folder of the table on.
    """

    pattern: str | None = None
    test_files: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    folders: str | None = None
    paths_in: tuple[str, ...] = ()

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields of the pattern."""
        return frozenset() if self.pattern is None else frozenset(expression(self.pattern).groupindex)

    @property
    def levels(self) -> tuple[str, ...] | None:
        """What each level of folders is, from the top; None where that is to be found out."""
        return None if self.folders is None else levels_in(self.folders)

    @property
    def says_client(self) -> bool:
        """Whether names are known to say whose a file is."""
        return CLIENT in self.fields or CLIENT in (self.levels or ())

    @property
    def given(self) -> str:
        """The keys that are set, as the subject of a sentence; empty if none."""
        values = {
            "data.file_pattern": self.pattern,
            "data.test_files": self.test_files,
            "data.folders": self.folders,
        }
        keys = [f"`{key}`" for key, value in values.items() if value is not None]
        return f"{' and '.join(keys)} {'is' if len(keys) == 1 else 'are'} set" if keys else ""


def levels_in(folders: str) -> tuple[str, ...]:
    """The levels of `data.folders`, from the top; folders below the last one say nothing.

    >>> levels_in("client/split/label")
    ('client', 'split', 'label')

    Raises:
        ValueError: another word, or one twice.
    """
    levels = tuple(folders.strip("/").split("/"))
    named = [level for level in levels if level != UNUSED]
    if set(levels) - set(_LEVELS) or len(set(named)) < len(named) or not named:
        raise ValueError(
            f"is {folders!r}, expected 'split', 'client' and 'label', each at most once, with '/' between them and '*' "
            "for a folder that says nothing, such as 'client/label' or 'split/label'"
        )
    return levels


def expression(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern with named fields, for file names without their ending.

    A field is never empty and never holds the text that stands between it and the next one, so that a name can be
    read in one way only.

    >>> expression("{label}_{client}_{index}").fullmatch("7_george_12").groupdict()
    {'label': '7', 'client': 'george', 'index': '12'}
    >>> expression("{label}_{client}").fullmatch("7_mary_ann") is None
    True

    Raises:
        ValueError: no field, a field twice, fields without text between them, or something else than names.
    """
    pieces = list(Formatter().parse(pattern))
    names = [name for _, name, _, _ in pieces if name is not None]
    if not names or not all(map(str.isidentifier, names)) or any(spec or how for _, _, spec, how in pieces):
        raise ValueError(f"is {pattern!r}, expected named fields such as {{label}}_{{client}}_{{index}}")
    if "/" in pattern or len(set(names)) < len(names):
        raise ValueError(f"is {pattern!r}, expected each field once and no folders")
    between = [text for text, name, _, _ in pieces[1:] if name is not None]
    if not all(between):
        raise ValueError(f"is {pattern!r}, expected text between two fields")
    found = ""
    for place, (text, name, _, _) in enumerate(pieces):
        beside = between[max(place - 1, 0) : place + 1]
        barrier = f"(?!{'|'.join(map(re.escape, beside))})" if beside else ""
        found += re.escape(text) + ("" if name is None else f"(?P<{name}>(?:{barrier}.)+)")
    return re.compile(found)
