"""Loads the splits of a data set from a file, a folder, saved data or the hub.

Local files are never cached in the user's home, and the names of folders above the source have no effect.
"""

from __future__ import annotations

import itertools
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedelta.data.folders import Splits, modality_in, read_folder
from fedelta.data.leaf import is_leaf, read_leaf
from fedelta.data.loading import TABLES, by_column, quiet_datasets
from fedelta.data.naming import Naming
from fedelta.data.scenes import scenes
from fedelta.data.tables import HINT, by_split, read_table_file, read_tables
from fedelta.data.walk import Tree, unwritable
from fedelta.errors import DataError
from fedelta.imports import collector_paused
from fedelta.settings.paths import GIVE_AGAIN, is_in_python

if TYPE_CHECKING:
    from datasets import Dataset


# Data sources that are names and never paths: embedded data, and of a deployment what each site reads of its own.
EMBEDDED = "digits"
NAMES = frozenset({EMBEDDED, "digit-scenes", "small-world", "small-notes"})
AT_THE_SITES = "sites"
_MOST_SEEN = 1000  # names in a folder among which the nearest is looked for
_WORLD_ROWS = 200  # training rows of each of the eight clients of the small world
# Files that `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write.
_SAVED = ("state.json", "dataset_dict.json")


def load_splits(source: str, subset: str | None, naming: Naming | None = None) -> Splits:
    """All splits of a data set by name; data without splits are one split with the name of the training set.

    Args:
        source: "digits", "small-world", a file, a folder or a hub name (see `sources.DataSource`).
        subset: configuration of a hub data set or of a folder in the hub's layout.
        naming: meaning of file and folder names; by default none.

    Raises:
        DataError: the source does not exist, cannot be read, or `naming` does not apply to it.
    """
    if is_in_python(source):
        raise DataError(f"data source {source!r} was given as objects in Python", hint=GIVE_AGAIN)
    if source == AT_THE_SITES:
        raise DataError(
            f"data source {source!r} means that each site of a deployment reads its own data, so there is none here",
            hint="run it with `fedelta deploy`, or name the data: `--set data.source=...`",
        )
    with collector_paused():
        import_module("datasets")
    naming = naming or Naming()
    path = _expanded(source)
    problem = None if source in NAMES else missing_path(source) or unwritable(path)
    if problem is not None:
        raise DataError(
            f"data source {problem}", hint="use a file, a folder, the name of a data set on the hub, or `digits`"
        )
    is_saved = source not in NAMES and any((path / name).is_file() for name in _SAVED)
    tree = Tree.of(path) if source not in NAMES and path.is_dir() and not is_saved else None
    modality = None if tree is None else modality_in(tree, TABLES.keys(), naming)
    if tree is not None and modality is not None:
        # Without a pattern, a table among the files is an error: its owner may expect it to be used.
        passed_over = frozenset() if naming.pattern is None else TABLES.keys()
        return read_folder(tree, modality, naming, passed_over=passed_over)
    if naming.keys_set:
        raise DataError(
            f"data source {source!r} is not a folder of images or recordings, but {naming.keys_set}, which applies to "
            "the names of such files",
            hint="remove it, or set `data.source` to the folder",
        )
    if source in NAMES:
        return Splits(_embedded(source, naming))
    if is_saved:
        return _saved(path, naming)
    if tree is not None:
        return _tables_in(tree, subset, naming)
    if path.is_file():
        return read_leaf({naming.train_split: [path]}) if is_leaf(path) else read_table_file(path, naming)
    return Splits(_hub(source, subset))


def missing_path(source: str) -> str | None:
    """The problem with a source that looks like a path but does not exist; else None. Reads nothing.

    >>> missing_path("somebody/something") is None  # may be on the hub
    True
    """
    path = _expanded(source)
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix.lower() in TABLES
    if not looks_like_path or path.is_dir() or path.is_file():
        return None
    return f"{source!r} does not exist (looked in {path.absolute().parent}){_nearest(path)}"


def _nearest(path: Path) -> str:
    """The name beside `path` that was probably meant, as the end of a sentence."""
    try:
        names = [beside.name for beside in itertools.islice(path.parent.iterdir(), _MOST_SEEN)]
    except OSError:
        return ""
    close = get_close_matches(path.name, sorted(names), n=1)
    return f", did you mean {str(path.with_name(close[0]))!r}?" if close else ""


def _expanded(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:
        # `~name`, but there is no such user.
        return Path(source)


def _embedded(source: str, naming: Naming) -> dict[str, Dataset]:
    """The splits of data that come with this package."""
    match source:
        case "digit-scenes":
            return _scenes()
        case "small-world":
            return _small_world()
        case "small-notes":
            return _small_notes()
        case _:
            return {naming.train_split: _digits()}


@cache
def _small_world() -> dict[str, Dataset]:
    """Instructions about the small world: `prompt`, `response` and `client`, the kind of question."""
    from datasets import Dataset

    from fedelta.data.small_world import instructions  # needs torch

    train, test = instructions(0, _WORLD_ROWS, _WORLD_ROWS // 4)
    return {"train": Dataset.from_list(train), "test": Dataset.from_list(test)}


@cache
def _small_notes() -> dict[str, Dataset]:
    from fedelta.data.small_notes import notes  # needs torch

    return notes()


@cache
def _digits() -> Dataset:
    """scikit-learn's handwritten digits: 1,797 images of 8x8 gray pixels, 0..16 there and 0..255 here."""
    from datasets import Array2D, ClassLabel, Dataset, Features

    pixels, labels = _digit_arrays()
    features = Features({"image": Array2D(shape=(8, 8), dtype="uint8"), "label": ClassLabel(num_classes=10)})
    return Dataset.from_dict({"image": list(pixels), "label": labels.tolist()}, features=features)


@cache
def _scenes() -> dict[str, Dataset]:
    return scenes(*_digit_arrays())


def _digit_arrays() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    # As `load_digits` reads it; importing that takes longer than all that `fedelta inspect` does.
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), delimiter=",")
    return (table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().astype("uint8"), table[:, -1].astype(np.int64)


def _tables_in(tree: Tree, subset: str | None, naming: Naming) -> Splits:
    leaf = [path for path in tree.files if is_leaf(path)]
    # LEAF keeps the whole data set beside its training and test parts.
    parts = [path for path in leaf if tree.place(path)[:1] in {("train",), ("test",)}] or leaf
    return read_leaf(by_split(tree, parts, naming.train_split)) if leaf else read_tables(tree, subset, naming)


def _saved(path: Path, naming: Naming) -> Splits:
    """Data written by `save_to_disk`, memory-mapped in place."""
    from datasets import DatasetDict, load_from_disk

    with quiet_datasets():
        try:
            loaded = load_from_disk(str(path))
        except Exception as error:
            # As in `loading.py`: parsers raise errors of many types.
            raise DataError(f"data source {str(path)!r} cannot be read: {error}", hint=HINT) from error
    if isinstance(loaded, DatasetDict):
        return Splits(dict(loaded))
    return Splits(by_column(loaded, naming) or {naming.train_split: loaded})


def _hub(name: str, subset: str | None) -> dict[str, Dataset]:
    from datasets import load_dataset

    with quiet_datasets():
        try:
            return dict(load_dataset(name, subset))
        except Exception as error:
            # As in `loading.py`: parsers raise errors of many types.
            reason = error.__cause__ or error
            what = f"data source {name!r} cannot be read: it is no file or folder here"
            raise DataError(f"{what}{_nearest(Path(name))}; from the hub: {reason}", hint=HINT) from error
