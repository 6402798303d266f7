"""Training and test set as `datasets.Dataset`, from each kind of place a data set may be in.

Local files are never cached in the user's home: folders of images or recordings are read in place, tables pass
through a temporary directory that is gone when the function returns (the memory map keeps its content).
"""

from __future__ import annotations

import contextlib
import glob
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedelta.data.folders import Naming, modality_in, read_folder
from fedelta.errors import DataError, listed

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

# Suffix to the loader of `datasets` that reads it.
_TABLES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


EMBEDDED = "digits"  # the one data source that is a name and never a path


def load_splits(source: str, subset: str | None, train_split: str, naming: Naming | None = None) -> dict[str, Dataset]:
    """All splits of a data set by name; data without splits are one split named `train_split`.

    Args:
        source: "digits", a file, a folder or a hub name (see `sources.DataSource`).
        subset: configuration of a hub data set or of a folder in the hub's layout.
        train_split: a sub-folder of this name makes a folder of images or recordings one with splits.
        naming: what the names of the files in such a folder say; by default nothing.

    Raises:
        DataError: nothing is there, or it cannot be read, or it has no file names for `naming`.
    """
    naming = naming or Naming()
    path = _expanded(source)
    modality = modality_in(path, _TABLES.keys(), naming) if source != EMBEDDED and path.is_dir() else None
    if modality is not None:
        # Without a pattern a table is a foreign file there, and maybe one that its owner counts on.
        passed_over = frozenset() if naming.pattern is None else _TABLES.keys()
        return read_folder(path, modality, train_split, naming, passed_over=passed_over)
    problem = None if source == EMBEDDED else missing_path(source)
    if problem is not None:
        raise DataError(
            f"data source {problem}", hint="give a file, a folder, the name of a data set on the hub, or `digits`"
        )
    if naming.given:
        raise DataError(
            f"data source {source!r} is no folder of images or recordings, but {naming.given}, for the "
            "names of such files",
            hint="leave that out, or name the folder in `data.source`",
        )
    if source == EMBEDDED:
        return {train_split: _digits()}
    if path.is_dir() or path.is_file():
        return _tables(path, subset, train_split)
    return _hub(source, subset)


def missing_path(source: str) -> str | None:
    """What is wrong with a source that looks like a path, if neither a file nor a folder is there; reads nothing.

    >>> missing_path("somebody/something") is None  # may be on the hub
    True
    """
    path = _expanded(source)
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix.lower() in _TABLES
    if not looks_like_path or path.is_dir() or path.is_file():
        return None
    return f"{source!r} does not exist (looked in {path.absolute().parent})"


def _expanded(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:
        # `~name` of a user that this machine does not know.
        return Path(source)


def _digits() -> Dataset:
    """scikit-learn's handwritten digits: 1,797 images of 8x8 gray pixels, 0..16 there and 0..255 here."""
    from datasets import Array2D, ClassLabel, Dataset, Features
    from sklearn.datasets import load_digits

    digits = load_digits()
    features = Features({"image": Array2D(shape=(8, 8), dtype="uint8"), "label": ClassLabel(num_classes=10)})
    pixels = (digits.images * (255 / 16)).round().astype("uint8")
    return Dataset.from_dict({"image": list(pixels), "label": digits.target.tolist()}, features=features)


def _tables(path: Path, subset: str | None, train_split: str) -> dict[str, Dataset]:
    from datasets import load_dataset

    if path.is_file() and path.suffix.lower() not in _TABLES:
        expected = listed(sorted(_TABLES))
        raise DataError(f"{str(path)!r} is of an unknown kind, expected a folder or a file ending in {expected}")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{str(path)!r} is an empty file, expected a table")
    # The temporary name is the loader's cache; nothing outlives this call but the mapped rows.
    with (
        tempfile.TemporaryDirectory(prefix="fedelta-", ignore_cleanup_errors=True) as cache,
        _failures(str(path)),
    ):
        if path.is_dir():
            return dict(load_dataset(str(path), subset, cache_dir=cache))
        # A name such as `data[1].csv` is a pattern to `datasets` unless it is escaped.
        files = {train_split: glob.escape(str(path.absolute()))}
        return dict(load_dataset(_TABLES[path.suffix.lower()], data_files=files, cache_dir=cache))


def _hub(name: str, subset: str | None) -> dict[str, Dataset]:
    from datasets import load_dataset

    with _failures(name):
        loaded: DatasetDict = load_dataset(name, subset)
        return dict(loaded)


@contextlib.contextmanager
def _failures(source: str) -> Iterator[None]:
    """Without progress bars; what `datasets` raises becomes a `DataError`."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # The CSV loader of `datasets` leaves closing its file to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    except Exception as error:
        # The loaders raise what their parsers raise, which has no common root.
        reason = error.__cause__ or error
        raise DataError(
            f"data source {source!r} cannot be read: {reason}",
            hint="expected a folder of images or recordings by class, Parquet, CSV, JSON or JSON Lines files, a data "
            "set on the hub (cached, where there is no network), or `digits`",
        ) from error
    finally:
        if not were_disabled:
            enable_progress_bars()
