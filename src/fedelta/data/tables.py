"""Tables in files: Parquet, CSV, JSON and JSON Lines, one by one, in a folder, or as a hub's repository has them.

Which files there are, and which split each is: `datasets` is never given a folder to guess from (see `loading.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedelta.data.folders import Splits, metadata_in
from fedelta.data.loading import TABLES, load_files
from fedelta.data.naming import Naming
from fedelta.data.split_names import kind_of, split_of_file
from fedelta.data.walk import Tree
from fedelta.errors import DataError, listed
from fedelta.modalities.table import MODALITIES

HINT = (
    "expected a folder of images or recordings by class, Parquet, CSV, JSON or JSON Lines files, a data "
    "set on the hub (cached, where there is no network), or `digits`"
)
# What `datasets`, Kaggle and others put beside tables.
_ABOUT = frozenset({"dataset_info", "dataset_infos", "dataset_dict", "state", "dataset-metadata", "package"})


def read_table(path: Path, naming: Naming) -> Splits:
    """One file: of the training set, where it has no column that says more.

    Raises:
        DataError: it is of an unknown kind, empty, or cannot be read.
    """
    if path.suffix.lower() not in TABLES:
        expected = listed(sorted(TABLES))
        raise DataError(f"{str(path)!r} is of an unknown kind, expected a folder or a file ending in {expected}")
    return load_files({naming.train_split: [path]}, naming)


def read_tables(tree: Tree, subset: str | None, naming: Naming) -> Splits:
    """The tables in a folder; their names, or those of their folders, say which split each is.

    Args:
        tree: with tables, and maybe with images or recordings that these speak of.
        subset: a configuration in its README.md, or a sub-folder.
        naming: the name of the training set, which all of them are where no name says otherwise.

    Raises:
        DataError: there is none, there are several kinds, or it is not clear which split one is.
    """
    if (declared := _declared(tree.root, subset)) is not None:
        return load_files(declared, naming)
    if subset is not None:
        return read_tables(_sub_folder(tree, subset), None, naming)
    tables = [path for path in tree.files if path.suffix.lower() in TABLES and path.stem.lower() not in _ABOUT]
    metadata = metadata_in(tree, TABLES.keys())
    has_examples = any(path.suffix.lower() in each.suffixes for path in tree.files for each in MODALITIES.values())
    kinds = Counter(TABLES[path.suffix.lower()] for path in tables)
    if metadata and has_examples:
        tables = metadata
    elif "parquet" in kinds:
        tables = [path for path in tables if path.suffix.lower() == ".parquet"]
    elif len(kinds) > 1:
        raise DataError(
            f"folder {str(tree.root)!r} holds tables of several kinds ({listed(sorted(kinds))}), expected one: "
            f"{listed([path.name for path in tables])}",
            hint="name the file in `data.source`, and that of the test set in `data.test_source`",
        )
    if not tables:
        raise DataError(
            f"data source {str(tree.root)!r} cannot be read: there is no table in it, and no image or recording",
            hint=HINT,
        )
    return load_files(by_split(tree, tables, naming.train_split), naming, tree if has_examples else None)


def by_split(tree: Tree, tables: Sequence[Path], train_split: str) -> dict[str, list[Path]]:
    """Split to its files, by their names or those of their folders.

    Raises:
        DataError: it is not clear whether a name is that of a split.
    """
    said = {path: _split_of(tree, path) for path in tables}
    words = {split for split, _ in said.values()}
    is_sure = all(split is not None and sure for split, sure in said.values())
    has_train = any(kind_of(split or "") == "train" for split in words)
    if words == {None} or (len(tables) == 1 and not is_sure):
        return {train_split: list(tables)}
    if not is_sure and (None in words or not has_train):
        without = [path.name for path, (split, _) in said.items() if split is None] or ["none"]
        within = [path.name for path, (split, _) in said.items() if split is not None]
        raise DataError(
            f"folder {str(tree.root)!r}: {listed(within)} may be splits by their names, and {listed(without)} without "
            "such a name; they can be read as splits or as one table",
            hint="name the file in `data.source`, and that of the test set in `data.test_source`; or call them "
            "'train' and 'test'",
        )
    splits: dict[str, list[Path]] = {}
    for path, (split, _) in said.items():
        splits.setdefault(split or train_split, []).append(path)
    return splits


def _split_of(tree: Tree, path: Path) -> tuple[str | None, bool]:
    folders = [name.casefold() for name in tree.place(path) if kind_of(name) is not None]
    return (folders[0], True) if folders else split_of_file(path.stem)


def _sub_folder(tree: Tree, subset: str) -> Tree:
    folder = tree.root / subset
    if not folder.is_dir() or folder.resolve() == tree.root.resolve():
        found = sorted({place[0] for path in tree.files if (place := tree.place(path))})
        raise DataError(
            f"folder {str(tree.root)!r} has no `data.subset` {subset!r}: its README.md declares none, and its folders "
            f"are {listed(found) or 'none'}"
        )
    return Tree.of(folder)


def _declared(folder: Path, subset: str | None) -> dict[str, list[Path]] | None:
    """What the head of a README.md says of files and splits, as the hub has it; None where it says nothing."""
    configs = _configs(folder / "README.md")
    if not configs:
        return None
    by_name = {str(each.get("config_name", "default")): each["data_files"] for each in configs}
    if subset is None and len(by_name) > 1 and "default" not in by_name:
        raise DataError(
            f"folder {str(folder)!r} has several subsets, expected one",
            hint=f"set `data.subset` to {listed([*by_name])}",
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
        raise DataError(f"README.md in {str(folder)!r} names files for {listed(empty)} that are not there")
    return splits


def _configs(readme: Path) -> list[dict[str, Any]]:
    """The entries with files; Any: whatever the file holds."""
    from huggingface_hub import metadata_load

    try:
        content = metadata_load(readme) if readme.is_file() else None
    except Exception as error:
        # Whatever the parser of YAML raises: its errors have no root in Python.
        raise DataError(f"the head of {str(readme)!r} cannot be read: {error}") from error
    found = content.get("configs") if isinstance(content, dict) else None
    return [each for each in found or [] if isinstance(each, dict) and each.get("data_files")]
