"""The meaning of file and folder names: `data.file_pattern`, `data.test_files`, `data.folders`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import Formatter

CLIENT = "client"  # field of a pattern, level of folders, and column of the rows
LABEL = "label"
SPLIT = "split"
UNUSED = "*"  # a level of folders without meaning
_LEVELS = (SPLIT, CLIENT, LABEL, UNUSED)


@dataclass(frozen=True)
class Naming:
    """The meaning of file and folder names.

    Args:
        pattern: `data.file_pattern` (see `expression`); None: file names have no meaning.
        test_files: glob of the files of the test set, for `PurePath.match`.
        train_split: name of the training set.
        test_split: name of the test set.
        folders: `data.folders` (see `levels_in`); None: inferred.
        paths_in: columns of tables that hold file paths, relative to the folder of the table.
        marks_broken: whether broken lines of tables are marked instead of refused (see `broken_lines.py`).
    """

    pattern: str | None = None
    test_files: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    folders: str | None = None
    paths_in: tuple[str, ...] = ()
    marks_broken: bool = False

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields of the pattern."""
        return frozenset() if self.pattern is None else frozenset(expression(self.pattern).groupindex)

    @property
    def levels(self) -> tuple[str, ...] | None:
        """The meaning of each level of folders, from the top; None if it has to be inferred."""
        return None if self.folders is None else levels_in(self.folders)

    @property
    def names_clients(self) -> bool:
        """Whether file or folder names are known to give the client of a file."""
        return CLIENT in self.fields or CLIENT in (self.levels or ())

    @property
    def keys_set(self) -> str:
        """The keys that are set, as a clause such as "`data.folders` is set"; empty if none is."""
        values = {
            "data.file_pattern": self.pattern,
            "data.test_files": self.test_files,
            "data.folders": self.folders,
        }
        keys = [f"`{key}`" for key, value in values.items() if value is not None]
        return f"{' and '.join(keys)} {'is' if len(keys) == 1 else 'are'} set" if keys else ""


def levels_in(folders: str) -> tuple[str, ...]:
    """The levels of `data.folders`, from the top; folders below the last one have no meaning.

    >>> levels_in("client/split/label")
    ('client', 'split', 'label')

    Raises:
        ValueError: a level is unknown or occurs twice.
    """
    levels = tuple(folders.strip("/").split("/"))
    named = [level for level in levels if level != UNUSED]
    if set(levels) - set(_LEVELS) or len(set(named)) < len(named) or not named:
        raise ValueError(
            f"is {folders!r}, expected 'split', 'client' and 'label', each at most once, separated by '/', and '*' "
            "for a level to ignore, such as 'client/label' or 'split/*/label'"
        )
    return levels


def expression(pattern: str) -> re.Pattern[str]:
    """The regular expression for a pattern with named fields; it matches file names without their suffix.

    A field is never empty and never contains the text between it and the next field, so that a name can be read in one
    way only.

    >>> expression("{label}_{client}_{index}").fullmatch("7_george_12").groupdict()
    {'label': '7', 'client': 'george', 'index': '12'}
    >>> expression("{label}_{client}").fullmatch("7_mary_ann") is None
    True

    Raises:
        ValueError: there is no field, a field occurs twice, two fields are not separated, or a field is not a name.
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
    regex = ""
    for place, (text, name, _, _) in enumerate(pieces):
        beside = between[max(place - 1, 0) : place + 1]
        barrier = f"(?!{'|'.join(map(re.escape, beside))})" if beside else ""
        regex += re.escape(text) + ("" if name is None else f"(?P<{name}>(?:{barrier}.)+)")
    return re.compile(regex)
