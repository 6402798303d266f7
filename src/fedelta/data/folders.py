"""Folders of images or of recordings: one row for each file, labelled by its sub-folder or by its name.

Files are read in place, later, by what makes the inputs; here only names are looked at.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING

from fedelta.errors import DataError, refuse
from fedelta.modalities.base import Modality
from fedelta.modalities.table import MODALITIES

if TYPE_CHECKING:
    from datasets import Dataset

CLIENT = "client"  # field of a pattern, and column of the rows
_LABEL = "label"
_PARQUET = ".parquet"  # may hold the files themselves
# What file managers leave behind.
_LITTER = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class Naming:
    """What the names of files say.

    Args:
        pattern: `data.file_pattern` (see `expression`); None says nothing.
        test_files: glob of the files that are the test set, as `PurePath.match` reads it.
        test_split: name of the test set.
    """

    pattern: str | None = None
    test_files: str | None = None
    test_split: str = "test"

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields of the pattern."""
        return frozenset() if self.pattern is None else frozenset(expression(self.pattern).groupindex)

    @property
    def given(self) -> str:
        """The keys that are set, as the subject of a sentence; empty if none."""
        values = {"data.file_pattern": self.pattern, "data.test_files": self.test_files}
        keys = [f"`{key}`" for key, value in values.items() if value is not None]
        return f"{' and '.join(keys)} {'is' if len(keys) == 1 else 'are'} set" if keys else ""


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


def modality_in(folder: Path, tables: Set[str], naming: Naming) -> type[Modality] | None:
    """What `folder` is a folder of; None for nothing, or where a table is in charge of the files.

    A Parquet file anywhere is in charge, and, unless there is a pattern for the names of the files, any table beside
    images or recordings that are in no sub-folder.

    Args:
        folder: to look at, with all that is below it.
        tables: suffixes of tables.
        naming: what the names of the files say.

    Raises:
        DataError: several kinds of examples are there, or a table is in charge and `naming` would say nothing.
    """
    found: Counter[str] = Counter()
    suffixes: Counter[str] = Counter()
    has_sub_folders = False
    for parent, _, names in os.walk(folder):
        own = Counter(Path(name).suffix.lower() for name in names if not name.startswith("."))
        here = {name: sum(own[suffix] for suffix in each.suffixes) for name, each in MODALITIES.items()}
        has_sub_folders = has_sub_folders or (parent != str(folder) and sum(here.values()) > 0)
        found.update(here)
        suffixes.update(own)
    if not found.total():
        return None
    may_be_in_charge = {_PARQUET} if has_sub_folders or naming.pattern is not None else {_PARQUET, *tables}
    if in_charge := sorted(suffixes.keys() & may_be_in_charge):
        _refuse_names(folder, naming, in_charge)
        return None
    kinds = [each for name, each in MODALITIES.items() if found[name]]
    if len(kinds) > 1:
        counts = " and ".join(f"{found[each.name]} {each.plural}" for each in kinds)
        refuse(f"folder {str(folder)!r}", [f"{counts}, expected one kind"], hint="keep them in folders of their own")
    return kinds[0]


def _refuse_names(folder: Path, naming: Naming, in_charge: Sequence[str]) -> None:
    """Raises where the names of files are to say something, but tables with these suffixes are in charge."""
    if not naming.given:
        return
    other = "" if _PARQUET in in_charge else "; or set `data.file_pattern`, which puts the files in charge"
    raise DataError(
        f"folder {str(folder)!r} holds a table ({', '.join(in_charge)}), which is in charge of the images or "
        f"recordings beside it, so that their names do not count, but {naming.given}",
        hint=f"keep the table elsewhere, or leave that out{other}",
    )


def read_folder(
    folder: Path, modality: type[Modality], train_split: str, naming: Naming, *, passed_over: Set[str]
) -> dict[str, Dataset]:
    """All splits of a folder: those of its sub-folders where one is named `train_split`, else that one alone.

    Args:
        folder: of images or recordings.
        modality: which of them.
        train_split: name of the training set.
        naming: where labels, clients and the test set come from, if not from sub-folders.
        passed_over: suffixes of files that are not looked at; others that are not of `modality` are problems.

    Returns:
        Split to its rows: column `image` or `audio` (the path), `label`, and `client` where the pattern has it.

    Raises:
        DataError: files that are of another kind, have no label, or do not match; names every problem.
    """
    if (folder / train_split).is_dir():
        roots = {entry.name: entry for entry in _visible(folder) if entry.is_dir()}
    else:
        roots = {train_split: folder}
    problems: list[str] = []
    files = {name: _files(root, modality, passed_over, problems) for name, root in roots.items()}
    problems += _mismatches([path for paths in files.values() for path in paths], naming)
    about_test_files = _move_test_files(files, train_split, naming)
    splits = {}
    for name, paths in files.items():
        # Test files by name lie among the training files.
        splits[name] = _labelled(paths, roots.get(name, roots[train_split]), naming, problems)
    expected = f"one sub-folder of {modality.name} files for each class, or `data.file_pattern` with a field {{label}}"
    hints = [f"expected {expected}"]
    hints = hints * bool(problems) + [hint for _, hint in about_test_files]
    problems = [problem for problem, _ in about_test_files] + problems
    refuse(f"{modality.name} folder {str(folder)!r}", problems, hint="; ".join(hints))
    return {name: _dataset(rows, modality, naming) for name, rows in splits.items()}


def _files(root: Path, modality: type[Modality], passed_over: Set[str], problems: list[str]) -> list[Path]:
    """The files of `modality` below `root`, sorted; adds to `problems`."""
    found = _visible(root, "**/*")
    files = [path for path in found if path.is_file()]
    parents = {path.relative_to(root).parts[0] for path in files}
    for path in found:
        if path.parent == root and path.is_dir() and path.name not in parents:
            problems.append(f"{str(path)!r} is an empty folder")
        if path.is_file() and path.suffix.lower() not in modality.suffixes | passed_over:
            problems.append(f"{str(path)!r} is no {modality.singular}")
    return [path for path in files if path.suffix.lower() in modality.suffixes]


def _mismatches(paths: Sequence[Path], naming: Naming) -> list[str]:
    if naming.pattern is None:
        return []
    pattern = expression(naming.pattern)
    foreign = [path for path in paths if pattern.fullmatch(path.stem) is None]
    problem = (
        f"{len(foreign)} of {len(paths)} file names do not match `data.file_pattern` = {naming.pattern!r} "
        f"(endings left out), {_first(foreign)}"
    )
    return [problem] if foreign else []


def _move_test_files(files: dict[str, list[Path]], train_split: str, naming: Naming) -> list[tuple[str, str]]:
    """Moves what `naming.test_files` matches from the training set to a test set of its own.

    Returns:
        A problem and its hint, or nothing.
    """
    if naming.test_files is None:
        return []
    if naming.test_split in files:
        problem = f"`data.test_files` is set, and there is a folder {naming.test_split!r} with a test set"
        return [(problem, "leave `data.test_files` out, or keep that folder elsewhere")]
    both = files[train_split]
    test = [path for path in both if path.match(naming.test_files)]
    if not test:
        problem = f"none of {len(both)} files matches `data.test_files` = {naming.test_files!r}, {_first(both)}"
        return [
            (problem, "`data.test_files` is for whole names, such as `*_[0-4].wav`, or `noisy/*` for those in a folder")
        ]
    taken = set(test)
    files[train_split] = [path for path in both if path not in taken]
    files[naming.test_split] = test
    return []


def _labelled(paths: Sequence[Path], root: Path, naming: Naming, problems: list[str]) -> list[dict[str, str]]:
    """Path, label and perhaps client of each file that matches; adds to `problems`."""
    pattern = None if naming.pattern is None else expression(naming.pattern)
    rows: list[dict[str, str]] = []
    for path in paths:
        match = None if pattern is None else pattern.fullmatch(path.stem)
        if pattern is not None and match is None:
            continue
        row = {} if match is None else match.groupdict()
        if _LABEL not in row:
            if path.parent == root:
                lacks = "" if pattern is None else f", and the pattern {naming.pattern!r} has no field {{label}}"
                problems.append(f"{str(path)!r} is in no class folder{lacks}")
            row[_LABEL] = path.relative_to(root).parts[0]
        rows.append({**row, "path": str(path)})
    return rows


def _dataset(rows: Sequence[dict[str, str]], modality: type[Modality], naming: Naming) -> Dataset:
    from datasets import Audio, Dataset, Features, Image, Value

    name = modality.name
    columns: dict[str, object] = {name: [{"bytes": None, "path": row["path"]} for row in rows]}
    columns[_LABEL] = [row[_LABEL] for row in rows]
    stored: dict[str, object] = {name: {"bytes": Value("binary"), "path": Value("string")}}
    stored[_LABEL] = Value("string")
    if CLIENT in naming.fields:
        columns[CLIENT] = [row[CLIENT] for row in rows]
        stored[CLIENT] = Value("string")
    dataset = Dataset.from_dict(columns, features=Features(stored))
    # Cast: made with this feature at once, a data set of recordings would want torchcodec.
    return dataset.cast_column(name, {"image": Image(), "audio": Audio(decode=False)}[name])


def _visible(folder: Path, pattern: str = "*") -> list[Path]:
    entries = sorted(folder.glob(pattern))
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _LITTER]


def _first(paths: Sequence[Path]) -> str:
    return f"first {paths[0].name!r}" if paths else "of which there are none"
