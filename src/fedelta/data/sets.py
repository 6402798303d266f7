"""Loads the training and the test set that section `[data]` names, among the splits of its source."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from fedelta.data.files import load_splits
from fedelta.data.folders import Splits
from fedelta.data.naming import Naming
from fedelta.data.split_names import matching_splits, split_kind
from fedelta.errors import listed, refuse

if TYPE_CHECKING:
    from datasets import Dataset

TEST = "test"  # the hub's usual name


class Place(Protocol):
    """Where the sets are: fields of section `[data]` (`DataSource`)."""

    @property
    def source(self) -> str:
        """Of the training set."""

    @property
    def test_source(self) -> str | None:
        """Of the test set, if it is elsewhere."""

    @property
    def subset(self) -> str | None:
        """Configuration of a data set on the hub."""

    @property
    def train_split(self) -> str:
        """Name of the training split."""

    @property
    def test_split(self) -> str:
        """Name of the test split."""

    @property
    def naming(self) -> Naming:
        """The meaning of names of files, folders and splits."""


def load_sets(source: Place, origin: str, loaded: Splits | None = None) -> tuple[Dataset, Dataset | None, Splits]:
    """The training split, the test split if there is one, and all splits that were read.

    Args:
        source: section `[data]`.
        origin: name of the data in messages.
        loaded: the splits, if they are not to be read.

    Raises:
        DataError: the data are missing or unreadable, or it is unclear which split is which.
    """
    loaded = loaded or load_splits(source.source, source.subset, source.naming)
    splits = loaded.rows
    problems: list[str] = []
    train = _split(splits, source.train_split, "data.train_split", problems)
    if train is None:
        problems.append(f"no split {source.train_split!r} (`data.train_split`), found {listed(sorted(splits))}")
    elif len(splits[train]) < 2:
        problems.append(f"the training set has {len(splits[train])} rows, expected 2 or more")
    test: Dataset | None
    notes: list[str] = []
    if source.test_source is not None:
        test = _test_source(source, source.test_source, problems)
    else:
        test = _test_split(splits, source, problems, notes)
    if test is not None and len(test) == 0:
        problems.append("the test set has no rows, expected 1 or more")
    refuse(origin, list(dict.fromkeys(problems)))
    used = {train, source.test_split, *([] if test is None else matching_splits(splits, source.test_split))}
    if unused := [name for name in splits if name not in used and split_kind(name) != "validation"]:
        notes.append(f"unused splits: {listed(unused)}; select splits with `data.train_split` and `data.test_split`")
    return splits[train or ""], test, replace(loaded, notes=(*loaded.notes, *notes))


def _test_source(source: Place, place: str, problems: list[str]) -> Dataset | None:
    naming = replace(source.naming, test_files=None, train_split=source.test_split)
    others = load_splits(place, source.subset, naming).rows
    name = _split(others, source.test_split, "data.test_split", problems)
    if name is None and len(others) > 1:
        problems.append(f"no split {source.test_split!r} in `data.test_source`, found {listed(sorted(others))}")
    # A single split is used under any name.
    return others[name] if name is not None else next(iter(others.values())) if len(others) == 1 else None


def _test_split(splits: dict[str, Dataset], source: Place, problems: list[str], notes: list[str]) -> Dataset | None:
    """The test set among `splits`; None if rows have to be held out."""
    name = _split(splits, source.test_split, "data.test_split", problems)
    if name is not None:
        return splits[name]
    if source.test_split != TEST:
        problems.append(f"no split {source.test_split!r} (`data.test_split`), found {listed(sorted(splits))}")
        return None
    name = _split(splits, "validation", "data.test_split", problems)
    if name is None or split_kind(source.train_split) == "validation":
        return None
    notes.append(f"there is no test set, so {name!r} is used for evaluation; set `data.test_split` to change that")
    return splits[name]


def _split(splits: dict[str, Dataset], name: str, key: str, problems: list[str]) -> str | None:
    """The split that `name` refers to; None if there is none, or (a problem) several."""
    matches = matching_splits(splits, name)
    if len(matches) > 1:
        problems.append(f"{listed(matches)} may all be the {name!r} split, expected one: set `{key}` to one of them")
    return matches[0] if len(matches) == 1 else None
