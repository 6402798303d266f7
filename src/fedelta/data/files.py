"""Training and test set as `datasets.Dataset`, from each kind of place a data set may be in.

Local files are never cached in the user's home, and nobody guesses from the names of folders above them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedelta.data.folders import Splits, modality_in, read_folder
from fedelta.data.leaf import is_leaf, read_leaf
from fedelta.data.loading import TABLES, by_column, quiet
from fedelta.data.naming import Naming
from fedelta.data.tables import HINT, by_split, read_table, read_tables
from fedelta.data.walk import Tree, unwritable
from fedelta.errors import DataError
from fedelta.imports import collector_paused

if TYPE_CHECKING:
    from datasets import Dataset


EMBEDDED = "digits"  # the one data source that is a name and never a path
# What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write.
_SAVED = ("state.json", "dataset_dict.json")


def load_splits(source: str, subset: str | None, naming: Naming | None = None) -> Splits:
    """All splits of a data set by name; data without splits are one split with the name of the training set.

    Args:
        source: "digits", a file, a folder or a hub name (see `sources.DataSource`).
        subset: configuration of a hub data set or of a folder in the hub's layout.
        naming: what names say; by default nothing.

    Raises:
        DataError: nothing is there, or it cannot be read, or it has no file names for `naming`.
    """
    with collector_paused():
        import_module("datasets")
    naming = naming or Naming()
    path = _expanded(source)
    problem = None if source == EMBEDDED else missing_path(source) or unwritable(path)
    if problem is not None:
        raise DataError(
            f"data source {problem}", hint="give a file, a folder, the name of a data set on the hub, or `digits`"
        )
    is_saved = source != EMBEDDED and any((path / name).is_file() for name in _SAVED)
    tree = Tree.of(path) if source != EMBEDDED and path.is_dir() and not is_saved else None
    modality = None if tree is None else modality_in(tree, TABLES.keys(), naming)
    if tree is not None and modality is not None:
        # Without a pattern a table is a foreign file there, and maybe one that its owner counts on.
        passed_over = frozenset() if naming.pattern is None else TABLES.keys()
        return read_folder(tree, modality, naming, passed_over=passed_over)
    if naming.given:
        raise DataError(
            f"data source {source!r} is no folder of images or recordings, but {naming.given}, for the "
            "names of such files",
            hint="leave that out, or name the folder in `data.source`",
        )
    if source == EMBEDDED:
        return Splits({naming.train_split: _digits()})
    if is_saved:
        return _saved(path, naming)
    if tree is not None:
        return _tables_in(tree, subset, naming)
    if path.is_file():
        return read_leaf({naming.train_split: [path]}) if is_leaf(path) else read_table(path, naming)
    return Splits(_hub(source, subset))


def missing_path(source: str) -> str | None:
    """What is wrong with a source that looks like a path, if neither a file nor a folder is there; reads nothing.

    >>> missing_path("somebody/something") is None  # may be on the hub
    True
    """
    path = _expanded(source)
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix.lower() in TABLES
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

    # As `load_digits` reads it; importing that takes longer than all that `fedelta inspect` does.
    table = np.loadtxt(distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz"), delimiter=",")
    pixels = (table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().astype("uint8")
    features = Features({"image": Array2D(shape=(8, 8), dtype="uint8"), "label": ClassLabel(num_classes=10)})
    return Dataset.from_dict({"image": list(pixels), "label": table[:, -1].astype(int).tolist()}, features=features)


def _tables_in(tree: Tree, subset: str | None, naming: Naming) -> Splits:
    leaf = [path for path in tree.files if is_leaf(path)]
    # LEAF keeps the whole set beside the parts that it has made of it.
    parts = [path for path in leaf if tree.place(path)[:1] in {("train",), ("test",)}] or leaf
    return read_leaf(by_split(tree, parts, naming.train_split)) if leaf else read_tables(tree, subset, naming)


def _saved(path: Path, naming: Naming) -> Splits:
    """What `save_to_disk` has written, mapped where it is."""
    from datasets import DatasetDict, load_from_disk

    with quiet():
        try:
            loaded = load_from_disk(str(path))
        except Exception as error:
            # As in `loading.py`: whatever the parsers raise.
            raise DataError(f"data source {str(path)!r} cannot be read: {error}", hint=HINT) from error
    if isinstance(loaded, DatasetDict):
        return Splits(dict(loaded))
    return Splits(by_column(loaded, naming) or {naming.train_split: loaded})


def _hub(name: str, subset: str | None) -> dict[str, Dataset]:
    from datasets import load_dataset

    with quiet():
        try:
            return dict(load_dataset(name, subset))
        except Exception as error:
            # As in `loading.py`: whatever the parsers raise.
            reason = error.__cause__ or error
            raise DataError(f"data source {name!r} cannot be read: {reason}", hint=HINT) from error
