"""Reads folders of images or recordings: one row per file, with label and client from folders or the file name.

Only names are read here. The modality reads the files later, in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedelta.data.levels import as_setting, infer_levels
from fedelta.data.naming import CLIENT, LABEL, SPLIT, Naming, expression
from fedelta.data.split_names import matching_splits
from fedelta.data.walk import Tree
from fedelta.errors import DataError, listed, refuse
from fedelta.modalities.base import Modality
from fedelta.modalities.table import MODALITIES

if TYPE_CHECKING:
    from datasets import Dataset

_PARQUET = ".parquet"  # may contain images or recordings itself
# Files that describe the data set, beside the folders of classes.
_DOCUMENTS = frozenset({".md", ".txt", ".rst", ".pdf", ".html"})
_DOCUMENT_NAMES = frozenset({"readme", "license", "licence", "citation.cff", "copying"})
_METADATA = "metadata"  # name of a table with the labels of the files beside it


@dataclass(frozen=True)
class Splits:
    """The splits of a data set.

    Args:
        rows: name of a split to its rows.
        client: the column of clients, if the data contain one.
        notes: messages about assumptions that may be wrong.
    """

    rows: dict[str, Dataset]
    client: str | None = None
    notes: tuple[str, ...] = field(default=())


def modality_in(tree: Tree, tables: Set[str], naming: Naming) -> type[Modality] | None:
    """The modality of the files in `tree`; None if there are no such files, or if a table defines the rows.

    A Parquet file always defines the rows. Unless `naming` has a pattern, so does a table called `metadata`, and any
    table if no image or recording is in a sub-folder.

    Args:
        tree: the folder.
        tables: suffixes of tables.
        naming: meaning of file and folder names.

    Raises:
        DataError: there are files of several modalities, or a table defines the rows although `naming` is set.
    """
    suffixes = Counter(path.suffix.lower() for path in tree.files)
    counts = {name: sum(suffixes[suffix] for suffix in kind.suffixes) for name, kind in MODALITIES.items()}
    if not any(counts.values()):
        return None
    examples = {suffix for kind in MODALITIES.values() for suffix in kind.suffixes}
    in_sub_folders = any(path.suffix.lower() in examples and tree.place(path) for path in tree.files)
    possible_tables = {_PARQUET} if in_sub_folders or naming.pattern is not None else {_PARQUET, *tables}
    defining_tables = suffixes.keys() & possible_tables
    if naming.pattern is None:
        defining_tables |= {path.suffix.lower() for path in metadata_in(tree, tables)}
    if defining_tables:
        _refuse_names(tree.root, naming, sorted(defining_tables))
        return None
    kinds = [kind for name, kind in MODALITIES.items() if counts[name]]
    if len(kinds) > 1:
        numbers = " and ".join(f"{counts[kind.name]} {kind.plural}" for kind in kinds)
        refuse(f"folder {str(tree.root)!r}", [f"{numbers}, expected one kind"], hint="put them in separate folders")
    return kinds[0]


def metadata_in(tree: Tree, tables: Set[str]) -> list[Path]:
    """The tables that describe the files beside them."""
    return [path for path in tree.files if path.stem.lower() == _METADATA and path.suffix.lower() in tables]


def _refuse_names(folder: Path, naming: Naming, tables: Sequence[str]) -> None:
    """Raises if `naming` is set, although tables with these suffixes define the rows."""
    if not naming.keys_set:
        return
    pattern = "" if _PARQUET in tables else "; or set `data.file_pattern`, and the table is ignored"
    raise DataError(
        f"folder {str(folder)!r} holds a table ({', '.join(tables)}), which defines the rows, so that the names of "
        f"images or recordings are ignored, but {naming.keys_set}",
        hint=f"move the table elsewhere, or remove the setting{pattern}",
    )


def read_folder(tree: Tree, modality: type[Modality], naming: Naming, *, passed_over: Set[str]) -> Splits:
    """All splits of a folder; without a level of splits, only a training split.

    Args:
        tree: of images or recordings.
        modality: of the files.
        naming: meaning of file and folder names; levels that it leaves open are inferred (see `levels.py`).
        passed_over: suffixes of files to ignore; any other file that is not of `modality` is a problem.

    Returns:
        Split to its rows, with column `image` or `audio` (the path), `label`, and `client` if names give it.

    Raises:
        DataError: files are of another kind, have no label, or do not match the pattern; lists all problems.
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
    problems += [f"{str(path)!r} is not {_with_article(modality.singular)}" for path in foreign]
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
    test_file_problems = _move_test_files(splits, naming)
    rows = {name: _labelled(tree, paths, levels, naming, problems) for name, paths in splits.items()}
    expected = f"one sub-folder of {modality.name} files per class, or `data.file_pattern` with a field {{label}}"
    hints = [f"`data.folders` gives the meaning of each level of folders; expected {expected}"]
    hints = hints * bool(problems) + [hint for _, hint in test_file_problems]
    problems = [problem for problem, _ in test_file_problems] + problems
    refuse(f"{modality.name} folder {str(tree.root)!r}", problems, hint="; ".join(hints))
    client = CLIENT if CLIENT in levels or CLIENT in naming.fields else None
    datasets = {name: _dataset(split_rows, modality, client is not None) for name, split_rows in rows.items()}
    return Splits(datasets, client, _notes(tree, levels, splits, naming))


def _levels(tree: Tree, files: Sequence[Path], modality: type[Modality], naming: Naming) -> tuple[str, ...]:
    """The meaning of each level of folders: from `naming`, else inferred."""
    if naming.levels is not None:
        return naming.levels
    places = [tree.place(path) for path in files] + [(*tree.place(path), path.name) for path in tree.empty]
    try:
        known_splits = (naming.train_split, naming.test_split)
        return infer_levels(places, known_splits, needs_label=LABEL not in naming.fields)
    except DataError as error:
        raise DataError(f"{modality.name} folder {str(tree.root)!r}: {error.message}", hint=error.hint) from error


def _is_document(path: Path, tree: Tree, levels: Sequence[str]) -> bool:
    """Whether a file describes the data set: a README, a licence or a list above the folders of classes."""
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
    """Moves the files that match `naming.test_files` from the training set to a test set.

    Returns:
        At most one problem with its hint.
    """
    if naming.test_files is None:
        return []
    if folders := matching_splits(files, naming.test_split):
        problem = f"`data.test_files` is set, but there is also a folder {folders[0]!r} with a test set"
        return [(problem, "remove `data.test_files`, or move that folder elsewhere")]
    train = next(iter(matching_splits(files, naming.train_split)), naming.train_split)
    both = files.get(train, [])
    test = [path for path in both if path.match(naming.test_files)]
    if not test:
        problem = f"none of {len(both)} files match `data.test_files` = {naming.test_files!r}, {_first(both)}"
        return [
            (
                problem,
                "`data.test_files` matches whole names, such as `*_[0-4].wav`, or `noisy/*` for files in a folder",
            )
        ]
    test_paths = set(test)
    files[train] = [path for path in both if path not in test_paths]
    files[naming.test_split] = test
    return []


def _labelled(
    tree: Tree, paths: Sequence[Path], levels: Sequence[str], naming: Naming, problems: list[str]
) -> list[dict[str, str]]:
    """The fields of each file (path, label, perhaps client) that matches; appends to `problems`."""
    pattern = None if naming.pattern is None else expression(naming.pattern)
    rows: list[dict[str, str]] = []
    for path in paths:
        match = None if pattern is None else pattern.fullmatch(path.stem)
        if pattern is not None and match is None:
            continue
        fields = dict(zip(levels, tree.place(path), strict=False)) | ({} if match is None else match.groupdict())
        for field_name in [LABEL, *[level for level in levels if level in {SPLIT, CLIENT}]]:
            if field_name not in fields:
                noun = "class" if field_name == LABEL else field_name
                lacks = "" if pattern is None else f", and the pattern {naming.pattern!r} has no field {{{field_name}}}"
                problems.append(f"{str(path)!r} is not in a {noun} folder{lacks}")
                fields[field_name] = ""
        rows.append({**fields, "path": str(path)})
    return rows


def _notes(tree: Tree, levels: Sequence[str], splits: dict[str, list[Path]], naming: Naming) -> tuple[str, ...]:
    """How the folders were read, if that was inferred and is not obvious."""
    is_obvious = levels in {(), (LABEL,), (SPLIT, LABEL)} and all(name == name.lower() for name in splits)
    if naming.folders is not None or is_obvious:
        return ()
    reading = f"folder {str(tree.root)!r} was read as `data.folders` = {as_setting(levels)!r}"
    split_names = f" (splits {listed(sorted(splits))})" if SPLIT in levels else ""
    return (f"{reading}{split_names}; set that key if it is wrong",)


def _dataset(rows: Sequence[dict[str, str]], modality: type[Modality], has_clients: bool) -> Dataset:
    from datasets import Audio, Dataset, Features, Image, Value

    name = modality.name
    columns: dict[str, object] = {name: [{"bytes": None, "path": row["path"]} for row in rows]}
    stored: dict[str, object] = {name: {"bytes": Value("binary"), "path": Value("string")}}
    for column in (LABEL, *[CLIENT] * has_clients):
        columns[column] = [row[column] for row in rows]
        stored[column] = Value("string")
    dataset = Dataset.from_dict(columns, features=Features(stored))
    # Cast afterwards: a data set created with the audio feature would require torchcodec.
    return dataset.cast_column(name, {"image": Image(), "audio": Audio(decode=False)}[name])


def _first(paths: Sequence[Path]) -> str:
    return f"first {paths[0].name!r}" if paths else "because there are no files"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
