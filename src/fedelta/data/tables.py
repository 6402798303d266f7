"""Finds tables (Parquet, CSV, JSON, JSON Lines): a single file, a folder of them, or the layout of a hub repository.

Files and splits are determined here; `datasets` never gets a folder to guess from (see `loading.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedelta.data.folders import Splits, metadata_in
from fedelta.data.loading import TABLES, load_files
from fedelta.data.naming import Naming
from fedelta.data.split_names import split_kind, split_of_file
from fedelta.data.walk import Tree
from fedelta.errors import DataError, listed
from fedelta.modalities.table import MODALITIES

HINT = (
    "expected a folder of images or recordings by class, Parquet, CSV, JSON or JSON Lines files, a data "
    "set on the hub (cached, where there is no network), or `digits`"
)
# Files that `datasets`, Kaggle and others put beside tables.
_ABOUT = frozenset({"dataset_info", "dataset_infos", "dataset_dict", "state", "dataset-metadata", "package"})


def read_table_file(path: Path, naming: Naming) -> Splits:
    """The rows of one file: the training set, unless a column names the splits.

    Raises:
        DataError: the file is of an unknown kind, empty, or cannot be read.
    """
    if path.suffix.lower() not in TABLES:
        expected = listed(sorted(TABLES))
        raise DataError(f"{str(path)!r} is of an unknown kind, expected a folder or a file ending in {expected}")
    return load_files({naming.train_split: [path]}, naming)


def read_tables(tree: Tree, subset: str | None, naming: Naming) -> Splits:
    """The rows of the tables in a folder; their names, or those of their folders, give the splits.

    Args:
        tree: folder of tables, perhaps with images or recordings that they refer to.
        subset: a configuration in its README.md, or a sub-folder.
        naming: has the name of the training set, to which all tables belong if no name is that of a split.

    Raises:
        DataError: there are no tables, tables of several kinds, or tables whose split is unclear.
    """
    if (declared := _declared(tree.root, subset)) is not None:
        return load_files(declared, naming)
    if subset is not None:
        return read_tables(_sub_folder(tree, subset), None, naming)
    tables = [path for path in tree.files if path.suffix.lower() in TABLES and path.stem.lower() not in _ABOUT]
    metadata = metadata_in(tree, TABLES.keys())
    has_examples = any(path.suffix.lower() in kind.suffixes for path in tree.files for kind in MODALITIES.values())
    kinds = Counter(TABLES[path.suffix.lower()] for path in tables)
    if metadata and has_examples:
        tables = metadata
    elif "parquet" in kinds:
        tables = [path for path in tables if path.suffix.lower() == ".parquet"]
    elif len(kinds) > 1:
        raise DataError(
            f"folder {str(tree.root)!r} holds tables of several kinds ({listed(sorted(kinds))}), expected one: "
            f"{listed([path.name for path in tables])}",
            hint="set `data.source` to the file, and `data.test_source` to that of the test set",
        )
    if not tables:
        raise DataError(
            f"data source {str(tree.root)!r} cannot be read: it holds no table, image or recording",
            hint=HINT,
        )
    return load_files(by_split(tree, tables, naming.train_split), naming, tree if has_examples else None)


def by_split(tree: Tree, tables: Sequence[Path], train_split: str) -> dict[str, list[Path]]:
    """Split to its files, by their names or those of their folders.

    Raises:
        DataError: it is unclear whether a name is that of a split.
    """
    split_of = {path: _split_of(tree, path) for path in tables}
    words = {split for split, _ in split_of.values()}
    is_sure = all(split is not None and sure for split, sure in split_of.values())
    has_train = any(split_kind(split or "") == "train" for split in words)
    if words == {None} or (len(tables) == 1 and not is_sure):
        return {train_split: list(tables)}
    if not is_sure and (None in words or not has_train):
        others = [path.name for path, (split, _) in split_of.items() if split is None] or ["none"]
        possible_splits = [path.name for path, (split, _) in split_of.items() if split is not None]
        raise DataError(
            f"folder {str(tree.root)!r}: the names of {listed(possible_splits)} may be those of splits, the names of "
            f"{listed(others)} are not; it is unclear whether the files are splits or parts of one table",
            hint="set `data.source` to the file, and `data.test_source` to that of the test set; or rename the files "
            "'train' and 'test'",
        )
    splits: dict[str, list[Path]] = {}
    for path, (split, _) in split_of.items():
        splits.setdefault(split or train_split, []).append(path)
    return splits


def _split_of(tree: Tree, path: Path) -> tuple[str | None, bool]:
    folders = [name.casefold() for name in tree.place(path) if split_kind(name) is not None]
    return (folders[0], True) if folders else split_of_file(path.stem)


def _sub_folder(tree: Tree, subset: str) -> Tree:
    folder = tree.root / subset
    if not folder.is_dir() or folder.resolve() == tree.root.resolve():
        folders = sorted({place[0] for path in tree.files if (place := tree.place(path))})
        raise DataError(
            f"folder {str(tree.root)!r} has no `data.subset` {subset!r}: its README.md declares no subsets, and its "
            f"folders are {listed(folders) or 'none'}"
        )
    return Tree.of(folder)


def _declared(folder: Path, subset: str | None) -> dict[str, list[Path]] | None:
    """Split to files, from the metadata of a README.md as on the hub; None if it declares no files."""
    configs = _configs(folder / "README.md")
    if not configs:
        return None
    by_name = {str(config.get("config_name", "default")): config["data_files"] for config in configs}
    if subset is None and len(by_name) > 1 and "default" not in by_name:
        raise DataError(
            f"folder {str(folder)!r} has several subsets, expected one",
            hint=f"set `data.subset` to one of {listed([*by_name])}",
        )
    name = subset or ("default" if "default" in by_name else next(iter(by_name)))
    if name not in by_name:
        raise DataError(f"folder {str(folder)!r} has no `data.subset` {name!r}, found {listed([*by_name])}")
    entries = by_name[name] if isinstance(by_name[name], list) else [by_name[name]]
    splits: dict[str, list[Path]] = {}
    for entry in entries:
        split, patterns = (entry["split"], entry["path"]) if isinstance(entry, dict) else ("train", entry)
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            splits.setdefault(str(split), []).extend(sorted(folder.glob(str(pattern).lstrip("/") or "*")))
    if empty := [split for split, files in splits.items() if not files]:
        raise DataError(f"README.md in {str(folder)!r} names files for {listed(empty)} that do not exist")
    return splits


def _configs(readme: Path) -> list[dict[str, Any]]:
    """The entries of a README.md's metadata that declare files; Any: YAML values."""
    from huggingface_hub import metadata_load

    try:
        content = metadata_load(readme) if readme.is_file() else None
    except Exception as error:
        # The YAML parser raises errors of many types.
        raise DataError(f"the metadata of {str(readme)!r} cannot be read: {error}") from error
    configs = content.get("configs") if isinstance(content, dict) else None
    return [config for config in configs or [] if isinstance(config, dict) and config.get("data_files")]
