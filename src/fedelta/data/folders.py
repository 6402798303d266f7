"""Folders of images or of recordings: one row for each file; its folders or its name say what it is.

Files are read in place, later, by what makes the inputs; here only names are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedelta.data.levels import described, find_levels
from fedelta.data.naming import CLIENT, LABEL, SPLIT, Naming, expression
from fedelta.data.split_names import chosen
from fedelta.data.walk import Tree
from fedelta.errors import DataError, listed, refuse
from fedelta.modalities.base import Modality
from fedelta.modalities.table import MODALITIES

if TYPE_CHECKING:
    from datasets import Dataset

_PARQUET = ".parquet"  # may hold the files themselves
# What stands beside the folders of classes and says something about them.
_DOCUMENTS = frozenset({".md", ".txt", ".rst", ".pdf", ".html"})
_DOCUMENT_NAMES = frozenset({"readme", "license", "licence", "citation.cff", "copying"})
_METADATA = "metadata"  # a table of this name says what is in the files beside it


@dataclass(frozen=True)
class Splits:
    """The parts of a data set.

    Args:
        rows: name of a split to its rows.
        client: the column that says whose a row is, where the data themselves have one.
        notes: what was found out and might be wrong, in words.
    """

    rows: dict[str, Dataset]
    client: str | None = None
    notes: tuple[str, ...] = field(default=())


def modality_in(tree: Tree, tables: Set[str], naming: Naming) -> type[Modality] | None:
    """What `tree` is a folder of; None for nothing, or where a table is in charge of the files.

    A Parquet file anywhere is in charge, and, unless there is a pattern for the names of the files, a table called
    `metadata`, and any table beside images or recordings that are in no sub-folder.

    Args:
        tree: to look at.
        tables: suffixes of tables.
        naming: what the names of the files say.

    Raises:
        DataError: several kinds of examples are there, or a table is in charge and `naming` would say nothing.
    """
    suffixes = Counter(path.suffix.lower() for path in tree.files)
    found = {name: sum(suffixes[suffix] for suffix in each.suffixes) for name, each in MODALITIES.items()}
    if not any(found.values()):
        return None
    examples = {suffix for each in MODALITIES.values() for suffix in each.suffixes}
    in_sub_folders = any(path.suffix.lower() in examples and tree.place(path) for path in tree.files)
    may_be_in_charge = {_PARQUET} if in_sub_folders or naming.pattern is not None else {_PARQUET, *tables}
    in_charge = suffixes.keys() & may_be_in_charge
    if naming.pattern is None:
        in_charge |= {path.suffix.lower() for path in metadata_in(tree, tables)}
    if in_charge:
        _refuse_names(tree.root, naming, sorted(in_charge))
        return None
    kinds = [each for name, each in MODALITIES.items() if found[name]]
    if len(kinds) > 1:
        counts = " and ".join(f"{found[each.name]} {each.plural}" for each in kinds)
        refuse(f"folder {str(tree.root)!r}", [f"{counts}, expected one kind"], hint="keep them in folders of their own")
    return kinds[0]


def metadata_in(tree: Tree, tables: Set[str]) -> list[Path]:
    """The tables that say what is in the files beside them."""
    return [path for path in tree.files if path.stem.lower() == _METADATA and path.suffix.lower() in tables]


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


def read_folder(tree: Tree, modality: type[Modality], naming: Naming, *, passed_over: Set[str]) -> Splits:
    """All splits of a folder; without a level of splits that of training alone.

    Args:
        tree: of images or recordings.
        modality: which of them.
        naming: what names say; what it does not tell is found out (see `levels.py`).
        passed_over: suffixes of files that are not looked at; others that are not of `modality` are problems.

    Returns:
        Split to its rows: column `image` or `audio` (the path), `label`, and `client` where names say it.

    Raises:
        DataError: files that are of another kind, have no label, or do not match; names every problem.
    """
    files = [path for path in tree.files if path.suffix.lower() in modality.suffixes]
    levels = _levels(tree, files, modality, naming)
    foreign = [
        path
        for path in tree.files
        if path.suffix.lower() not in modality.suffixes | passed_over and not _is_document(path, tree, levels)
    ]
    problems = [
        f"{str(path)!r} is an empty folder"
        for path in tree.empty
        if LABEL in levels[len(tree.place(path)) :] and levels[len(tree.place(path))] != SPLIT
    ]
    problems += [f"{str(path)!r} is no {modality.singular}" for path in foreign]
    problems += _mismatches(files, naming)
    splits: dict[str, list[Path]] = {} if SPLIT in levels else {naming.train_split: list(files)}
    if SPLIT in levels:
        depth = levels.index(SPLIT)
        for folder in tree.empty:
            if len(tree.place(folder)) == depth:
                splits[folder.name] = []
        for path in files:
            split = (*tree.place(path), *[naming.train_split] * len(levels))[depth]
            splits.setdefault(split, []).append(path)
    about_test_files = _move_test_files(splits, naming)
    rows = {name: _labelled(tree, paths, levels, naming, problems) for name, paths in splits.items()}
    expected = f"one sub-folder of {modality.name} files for each class, or `data.file_pattern` with a field {{label}}"
    hints = [f"`data.folders` says which level of folders is what; expected {expected}"]
    hints = hints * bool(problems) + [hint for _, hint in about_test_files]
    problems = [problem for problem, _ in about_test_files] + problems
    refuse(f"{modality.name} folder {str(tree.root)!r}", problems, hint="; ".join(hints))
    client = CLIENT if CLIENT in levels or CLIENT in naming.fields else None
    datasets = {name: _dataset(of_split, modality, client is not None) for name, of_split in rows.items()}
    return Splits(datasets, client, _notes(tree, levels, splits, naming))


def _levels(tree: Tree, files: Sequence[Path], modality: type[Modality], naming: Naming) -> tuple[str, ...]:
    """What each level of folders is: what is said, else what is found out."""
    if naming.levels is not None:
        return naming.levels
    places = [tree.place(path) for path in files] + [(*tree.place(path), path.name) for path in tree.empty]
    try:
        known = (naming.train_split, naming.test_split)
        return find_levels(places, known, needs_label=LABEL not in naming.fields)
    except DataError as error:
        raise DataError(f"{modality.name} folder {str(tree.root)!r}: {error.message}", hint=error.hint) from error


def _is_document(path: Path, tree: Tree, levels: Sequence[str]) -> bool:
    """Whether a file speaks of the data set: a README, a licence or a list above the folders of classes."""
    above = LABEL in levels and len(tree.place(path)) <= levels.index(LABEL)
    return above and (path.suffix.lower() in _DOCUMENTS or path.name.lower() in _DOCUMENT_NAMES)


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


def _move_test_files(files: dict[str, list[Path]], naming: Naming) -> list[tuple[str, str]]:
    """Moves what `naming.test_files` matches from the training set to a test set of its own.

    Returns:
        A problem and its hint, or nothing.
    """
    if naming.test_files is None:
        return []
    if found := chosen(files, naming.test_split):
        problem = f"`data.test_files` is set, and there is a folder {found[0]!r} with a test set"
        return [(problem, "leave `data.test_files` out, or keep that folder elsewhere")]
    train = next(iter(chosen(files, naming.train_split)), naming.train_split)
    both = files.get(train, [])
    test = [path for path in both if path.match(naming.test_files)]
    if not test:
        problem = f"none of {len(both)} files matches `data.test_files` = {naming.test_files!r}, {_first(both)}"
        return [
            (problem, "`data.test_files` is for whole names, such as `*_[0-4].wav`, or `noisy/*` for those in a folder")
        ]
    taken = set(test)
    files[train] = [path for path in both if path not in taken]
    files[naming.test_split] = test
    return []


def _labelled(
    tree: Tree, paths: Sequence[Path], levels: Sequence[str], naming: Naming, problems: list[str]
) -> list[dict[str, str]]:
    """Path, label and perhaps client of each file that matches; adds to `problems`."""
    pattern = None if naming.pattern is None else expression(naming.pattern)
    rows: list[dict[str, str]] = []
    for path in paths:
        match = None if pattern is None else pattern.fullmatch(path.stem)
        if pattern is not None and match is None:
            continue
        said = dict(zip(levels, tree.place(path), strict=False)) | ({} if match is None else match.groupdict())
        for what in [LABEL, *[level for level in levels if level in {SPLIT, CLIENT}]]:
            if what not in said:
                noun = "class" if what == LABEL else what
                lacks = "" if pattern is None else f", and the pattern {naming.pattern!r} has no field {{{what}}}"
                problems.append(f"{str(path)!r} is in no {noun} folder{lacks}")
                said[what] = ""
        rows.append({**said, "path": str(path)})
    return rows


def _notes(tree: Tree, levels: Sequence[str], splits: dict[str, list[Path]], naming: Naming) -> tuple[str, ...]:
    """How the folders were read, where that was found out and is not what everybody would think."""
    plain = levels in {(), (LABEL,), (SPLIT, LABEL)} and all(name == name.lower() for name in splits)
    if naming.folders is not None or plain:
        return ()
    found = f"folder {str(tree.root)!r} was read as `data.folders` = {described(levels)!r}"
    named = f" (splits {listed(sorted(splits))})" if SPLIT in levels else ""
    return (f"{found}{named}; set that key if it is wrong",)


def _dataset(rows: Sequence[dict[str, str]], modality: type[Modality], has_clients: bool) -> Dataset:
    from datasets import Audio, Dataset, Features, Image, Value

    name = modality.name
    columns: dict[str, object] = {name: [{"bytes": None, "path": row["path"]} for row in rows]}
    stored: dict[str, object] = {name: {"bytes": Value("binary"), "path": Value("string")}}
    for column in (LABEL, *[CLIENT] * has_clients):
        columns[column] = [row[column] for row in rows]
        stored[column] = Value("string")
    dataset = Dataset.from_dict(columns, features=Features(stored))
    # Cast: made with this feature at once, a data set of recordings would want torchcodec.
    return dataset.cast_column(name, {"image": Image(), "audio": Audio(decode=False)}[name])


def _first(paths: Sequence[Path]) -> str:
    return f"first {paths[0].name!r}" if paths else "of which there are none"
