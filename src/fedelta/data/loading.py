"""From tables in files to rows, by `datasets`.

It is given names of ours: whatever stands in a path (brackets, stars, "::", words such as "test"), it is no pattern
here. The rows pass through a temporary directory that is gone when the function returns (the memory map keeps its
content).
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gc
import glob
import shutil
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedelta.data.folders import Splits
from fedelta.data.naming import SPLIT, Naming
from fedelta.data.split_names import chosen, kind_of
from fedelta.data.walk import Tree
from fedelta.errors import DataError, listed, refuse
from fedelta.modalities.table import MODALITIES

if TYPE_CHECKING:
    from datasets import Dataset

# Suffix to the loader of `datasets` that reads it.
TABLES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
_FILE_NAME = "file_name"  # column of a `metadata` table, as `datasets` has it
# An empty cell is no value; "NA", "None" and "null" are words, as in the ISO code of Namibia or the name of a person.
_CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}


def load_files(splits: Mapping[str, Sequence[Path]], naming: Naming, examples_in: Tree | None = None) -> Splits:
    """The rows of each split.

    Args:
        splits: name to files, all of one kind.
        naming: which columns hold paths; the name of the training set.
        examples_in: images or recordings that a column `file_name` speaks of.

    Raises:
        DataError: a file cannot be read, or something that it speaks of is not there.
    """
    with quiet():
        return _load_files(splits, naming, examples_in)


def _load_files(splits: Mapping[str, Sequence[Path]], naming: Naming, examples_in: Tree | None) -> Splits:
    from datasets import concatenate_datasets

    rows: dict[str, Dataset] = {}
    notes: list[str] = []
    for split, paths in splits.items():
        folders = sorted({path.parent for path in paths})
        parts = []
        for folder in folders:
            part = _load([path for path in paths if path.parent == folder])
            names = {*naming.paths_in, *([_FILE_NAME] if examples_in is not None else [])}
            parts.append(_paths_in_full(part, names, folder))
        rows[split] = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    if examples_in is not None and all(_FILE_NAME in dataset.column_names for dataset in rows.values()):
        notes += _unmentioned(list(rows.values()), examples_in)
        rows = {split: _with_examples(dataset, split) for split, dataset in rows.items()}
    if len(rows) == 1:
        rows = by_column(next(iter(rows.values())), naming) or rows
    return Splits(rows, notes=tuple(notes))


def by_column(dataset: Dataset, naming: Naming) -> dict[str, Dataset] | None:
    """The splits that a column `split` tells apart; None where there is none.

    Raises:
        DataError: it tells some rows apart and not all.
    """
    column = next((name for name in dataset.column_names if name.casefold() == SPLIT), None)
    if column is None:
        return None
    values = dataset[column][:]
    names = sorted({value for value in values if isinstance(value, str)})
    known = [name for name in names if kind_of(name) is not None or name in {naming.train_split, naming.test_split}]
    if not chosen(names, naming.train_split):
        return None
    if odd := [row for row, value in enumerate(values) if value not in known]:
        raise DataError(
            f"column {column!r} names splits ({listed(known)}), but {len(odd)} rows have {values[odd[0]]!r} or the "
            f"like, first row {odd[0]} (from 0)",
            hint="write 'train', 'validation' or 'test' in each row, or call the column otherwise",
        )
    return {
        name: dataset.select([row for row, value in enumerate(values) if value == name]).remove_columns(column)
        for name in known
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and the warnings of `datasets`."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    were_disabled, level = are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)  # what it logs before it raises is in the error
    try:
        with warnings.catch_warnings():
            # The CSV loader of `datasets` leaves closing its file to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if not were_disabled:
            enable_progress_bars()


def _load(paths: Sequence[Path]) -> Dataset:
    """The rows of some files of one kind."""
    if empty := [path for path in paths if path.stat().st_size == 0]:
        raise DataError(f"{str(empty[0])!r} is an empty file, expected a table")
    suffix = paths[0].suffix.lower()
    with tempfile.TemporaryDirectory(prefix="fedelta-", ignore_cleanup_errors=True) as place:
        links = [Path(place) / f"{number}{suffix}" for number in range(len(paths))]
        for link, path in zip(links, paths, strict=True):
            _link(link, path)
        try:
            return _loaded(TABLES[suffix], links, place)
        except Exception as error:
            # The loaders raise what their parsers raise, which has no common root; they know the file by our name.
            reason = "it is too deep" if isinstance(error, RecursionError) else str(error.__cause__ or error)
            if "corresponds to no data" in reason or "BatchSize must be greater than 0" in reason:
                reason = "it has no rows"
            for link, path in zip(links, paths, strict=True):
                reason = reason.replace(str(link), str(path))
            _close_files(error)
            named = listed([str(path) for path in paths], 2)
            raise DataError(f"data source {named} cannot be read: {reason}", hint=_HINT) from error


def _close_files(error: BaseException) -> None:
    """Drops what the frames of an error hold: the CSV loader of `datasets` leaves closing its file to them."""
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__
    gc.collect()


def _link(link: Path, path: Path) -> None:
    """Puts a file under another name, without the mark in front of UTF-8, which the reader of JSON does not know.

    Raises:
        DataError: it is no JSON of rows; what is none ends the process in pyarrow 26, as `null` does.
    """
    with path.open("rb") as file:
        head = file.read(1024)
        if TABLES[path.suffix.lower()] != "json":
            link.symlink_to(path.absolute())
            return
        text = head.removeprefix(codecs.BOM_UTF8).lstrip()
        first = text[1:].lstrip() if text.startswith(b"[") else text
        if text and first[:1] not in {b"{", b"]", b'"', b""}:
            shown = head[:40].decode(errors="replace")
            raise DataError(
                f"data source {str(path)!r} cannot be read: it begins with {shown!r}, expected an object for each row",
                hint=_HINT,
            )
        if not head.startswith(codecs.BOM_UTF8):
            link.symlink_to(path.absolute())
            return
        file.seek(len(codecs.BOM_UTF8))
        with link.open("wb") as target:
            shutil.copyfileobj(file, target)


_HINT = "expected a table in Parquet, CSV (UTF-8, a line of names first), JSON or JSON Lines"


def _loaded(loader: str, files: Sequence[Path], place: str) -> Dataset:
    from datasets import Features, Value, load_dataset
    from datasets.exceptions import DatasetGenerationError

    names = {"rows": [glob.escape(str(path)) for path in files]}
    if loader != "csv":
        return load_dataset(loader, data_files=names, cache_dir=place, split="rows")
    try:
        return load_dataset(loader, data_files=names, cache_dir=place, split="rows", **_CSV_OPTIONS)
    except DatasetGenerationError as error:
        _close_files(error)
        # The type of a column is that of its first 10,000 rows; where others are of another, all columns are texts.
        with files[0].open(encoding="utf-8-sig", newline="") as file:
            columns = dict.fromkeys(next(csv.reader(file)), Value("string"))
        return load_dataset(
            loader, data_files=names, cache_dir=place, split="rows", features=Features(columns), **_CSV_OPTIONS
        )


def _paths_in_full(dataset: Dataset, names: set[str], folder: Path) -> Dataset:
    """The same, texts in the columns `names` as paths from `folder` on."""
    from datasets import Value

    for name in sorted(names & set(dataset.column_names)):
        if dataset.features[name] in (Value("string"), Value("large_string")):
            values = [None if value is None else str(folder.absolute() / value) for value in dataset[name][:]]
            dataset = dataset.remove_columns(name).add_column(name, values)
    return dataset


def _with_examples(dataset: Dataset, split: str) -> Dataset:
    """The same with images or recordings in place of the names of their files."""
    from datasets import Audio, Dataset, Image, Value, concatenate_datasets

    paths = dataset[_FILE_NAME][:]
    problems = [f"row {row} has no `{_FILE_NAME}`" for row, path in enumerate(paths) if path is None]
    problems += [
        f"row {row}: {path!r} is not there" for row, path in enumerate(paths) if path and not Path(path).is_file()
    ]
    refuse(
        f"the `metadata` table of split {split!r}", problems, hint="`file_name` is a path from the table's folder on"
    )
    suffixes = {Path(path).suffix.lower() for path in paths}
    kinds = [name for name, modality in MODALITIES.items() if suffixes <= modality.suffixes]
    if len(kinds) != 1 or kinds[0] in dataset.column_names:
        return dataset
    (kind,) = kinds
    files = Dataset.from_dict({kind: [{"bytes": None, "path": path} for path in paths]})
    files = files.cast_column(kind, {"bytes": Value("binary"), "path": Value("string")})
    files = files.cast_column(kind, {"image": Image(), "audio": Audio(decode=False)}[kind])
    return concatenate_datasets([files, dataset.remove_columns(_FILE_NAME)], axis=1)


def _unmentioned(rows: Sequence[Dataset], tree: Tree) -> list[str]:
    suffixes = Counter(path.suffix.lower() for path in tree.files)
    examples = {suffix for each in MODALITIES.values() for suffix in each.suffixes} & suffixes.keys()
    mentioned = {str(Path(path).absolute()) for dataset in rows for path in dataset[_FILE_NAME][:] if path}
    others = [path for path in tree.files if path.suffix.lower() in examples and str(path.absolute()) not in mentioned]
    if not others:
        return []
    return [
        f"{len(others)} files in {str(tree.root)!r} are in no `metadata` table and not used, first {str(others[0])!r}"
    ]
