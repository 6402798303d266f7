"""Reads tables from files with `datasets`.

`datasets` gets links with neutral names, so that brackets, stars, "::" or words such as "test" in a path are never
taken for patterns. The rows pass through a temporary directory that is deleted on return; the memory map keeps its
content.
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

from fedelta.data.broken_lines import marked, wrong_rows
from fedelta.data.folders import Splits
from fedelta.data.naming import SPLIT, Naming
from fedelta.data.split_names import matching_splits, split_kind
from fedelta.data.walk import Tree
from fedelta.errors import DataError, listed, refuse
from fedelta.modalities.table import MODALITIES

if TYPE_CHECKING:
    from datasets import Dataset

# Suffix to the loader of `datasets` that reads it.
TABLES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
_FILE_NAME = "file_name"  # column of a `metadata` table, as in `datasets`
# Only an empty cell is a missing value: "NA", "None" and "null" may be names, such as the ISO code of Namibia.
_CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}


def load_files(splits: Mapping[str, Sequence[Path]], naming: Naming, examples_in: Tree | None = None) -> Splits:
    """The rows of each split.

    Args:
        splits: name to files, all of one kind.
        naming: which columns hold paths; the name of the training set.
        examples_in: folder of the images or recordings that a column `file_name` refers to.

    Raises:
        DataError: a file cannot be read, or a file that it refers to does not exist.
    """
    with quiet_datasets():
        return _load_files(splits, naming, examples_in)


def _load_files(splits: Mapping[str, Sequence[Path]], naming: Naming, examples_in: Tree | None) -> Splits:
    from datasets import concatenate_datasets

    rows: dict[str, Dataset] = {}
    notes: list[str] = []
    for split, paths in splits.items():
        folders = sorted({path.parent for path in paths})
        parts = []
        for folder in folders:
            part = _load([path for path in paths if path.parent == folder], naming.marks_broken and not examples_in)
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
    """The splits in a column `split`; None if there is no such column, or it has no training rows.

    Raises:
        DataError: some rows do not name a split.
    """
    column = next((name for name in dataset.column_names if name.casefold() == SPLIT), None)
    if column is None:
        return None
    values = dataset[column][:]
    for row in wrong_rows(dataset):  # a broken line names no split: it counts as one of the training set
        values[row] = naming.train_split
    names = sorted({value for value in values if isinstance(value, str)})
    splits = [name for name in names if split_kind(name) is not None or name in {naming.train_split, naming.test_split}]
    if not matching_splits(names, naming.train_split):
        return None
    if odd := [row for row, value in enumerate(values) if value not in splits]:
        raise DataError(
            f"column {column!r} names splits ({listed(splits)}), but {len(odd)} rows have other values, such as "
            f"{values[odd[0]]!r} in row {odd[0]} (from 0)",
            hint="write 'train', 'validation' or 'test' in each row, or rename the column",
        )
    return {
        name: dataset.select([row for row, value in enumerate(values) if value == name]).remove_columns(column)
        for name in splits
    }


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Context manager without the progress bars and warnings of `datasets`."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    were_disabled, level = are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)  # the error contains what `datasets` logs before raising it
    try:
        with warnings.catch_warnings():
            # The CSV loader of `datasets` does not close its file.
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if not were_disabled:
            enable_progress_bars()


def _load(paths: Sequence[Path], marks_broken: bool) -> Dataset:
    """The rows of some files of one kind; of broken lines marks, if asked for."""
    if empty := [path for path in paths if path.stat().st_size == 0]:
        raise DataError(f"{str(empty[0])!r} is an empty file, expected a table")
    suffix = paths[0].suffix.lower()
    with tempfile.TemporaryDirectory(prefix="fedelta-", ignore_cleanup_errors=True) as place:
        links = [Path(place) / f"{number}{suffix}" for number in range(len(paths))]
        contents = marked(paths) if marks_broken else None
        for number, (link, path) in enumerate(zip(links, paths, strict=True)):
            if contents is None:
                _link(link, path)
            else:
                link.write_text(contents[number], encoding="utf-8", newline="")
        try:
            return _loaded(TABLES[suffix], links, place)
        except Exception as error:
            # The parsers raise errors of many types, which contain the name of the link instead of the file.
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error.__cause__ or error)
            if "corresponds to no data" in reason or "BatchSize must be greater than 0" in reason:
                reason = "it has no rows"
            for link, path in zip(links, paths, strict=True):
                reason = reason.replace(str(link), str(path))
            _close_files(error)
            names = listed([str(path) for path in paths], 2)
            skip = "" if suffix == ".parquet" or marks_broken else _SKIP
            raise DataError(f"data source {names} cannot be read: {reason}", hint=f"{_HINT}{skip}") from error


def _close_files(error: BaseException) -> None:
    """Closes files that the CSV loader of `datasets` left open, by clearing the frames of its error."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    gc.collect()


def _link(link: Path, path: Path) -> None:
    """Makes a file available as `link`; a JSON file is copied without its byte order mark, which the reader rejects.

    Raises:
        DataError: a JSON file does not hold rows; some of these, such as `null`, crash pyarrow 26.
    """
    with path.open("rb") as file:
        head = file.read(1024)
        if TABLES[path.suffix.lower()] != "json":
            link.symlink_to(path.absolute())
            return
        text = head.removeprefix(codecs.BOM_UTF8).lstrip()
        first = text[1:].lstrip() if text.startswith(b"[") else text
        if text and first[:1] not in {b"{", b"]", b'"', b""}:
            start = head[:40].decode(errors="replace")
            raise DataError(
                f"data source {str(path)!r} cannot be read: it begins with {start!r}, expected one object per row",
                hint=_HINT,
            )
        if not head.startswith(codecs.BOM_UTF8):
            link.symlink_to(path.absolute())
            return
        file.seek(len(codecs.BOM_UTF8))
        with link.open("wb") as target:
            shutil.copyfileobj(file, target)


_SKIP = '; `data.on_error = "skip"`, `--on-error skip` of `fedelta run`, leaves out lines that are broken'
_HINT = "expected a table in Parquet, CSV (UTF-8, with a header line), JSON or JSON Lines"


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
        # Column types are inferred from the first 10,000 rows. If later rows differ, read all columns as texts.
        with files[0].open(encoding="utf-8-sig", newline="") as file:
            columns = dict.fromkeys(next(csv.reader(file)), Value("string"))
        return load_dataset(
            loader, data_files=names, cache_dir=place, split="rows", features=Features(columns), **_CSV_OPTIONS
        )


def _paths_in_full(dataset: Dataset, names: set[str], folder: Path) -> Dataset:
    """The data set with the paths in the columns `names` made absolute; they are relative to `folder`."""
    from datasets import Value

    for name in sorted(names & set(dataset.column_names)):
        if dataset.features[name] in (Value("string"), Value("large_string")):
            values = [None if value is None else str(folder.absolute() / value) for value in dataset[name][:]]
            dataset = dataset.remove_columns(name).add_column(name, values)
    return dataset


def _with_examples(dataset: Dataset, split: str) -> Dataset:
    """The data set with file names replaced by images or recordings."""
    from datasets import Audio, Dataset, Image, Value, concatenate_datasets

    paths = dataset[_FILE_NAME][:]
    problems = [f"row {row} has no `{_FILE_NAME}`" for row, path in enumerate(paths) if path is None]
    problems += [
        f"row {row}: {path!r} does not exist" for row, path in enumerate(paths) if path and not Path(path).is_file()
    ]
    refuse(
        f"the `metadata` table of split {split!r}", problems, hint="`file_name` is relative to the folder of the table"
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
    examples = {suffix for modality in MODALITIES.values() for suffix in modality.suffixes} & suffixes.keys()
    mentioned = {str(Path(path).absolute()) for dataset in rows for path in dataset[_FILE_NAME][:] if path}
    others = [path for path in tree.files if path.suffix.lower() in examples and str(path.absolute()) not in mentioned]
    if not others:
        return []
    problem = f"{len(others)} files in {str(tree.root)!r} are not used, because no `metadata` table lists them"
    return [f"{problem}, first {str(others[0])!r}"]
