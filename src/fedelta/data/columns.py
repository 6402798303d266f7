"""Which column is what: labels, images, texts or recordings, clients; and labels as numbers.

A column that the configuration does not name is found from the features of the data set. Where that leaves a
choice, it is an error: a wrong guess would train on the wrong thing without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fedelta.data.problems import listed, refuse

if TYPE_CHECKING:
    from datasets import Dataset

Modality = Literal["image", "text", "audio"]


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are used, and what kind of input it is."""

    label: str
    input: str
    client: str | None
    modality: Modality


@dataclass(frozen=True)
class Wanted:
    """The names that the configuration gives; None is to be found."""

    label: str | None = None
    image: str | None = None
    text: str | None = None
    client: str | None = None
    audio: str | None = None


def find_columns(dataset: Dataset, wanted: Wanted, *, origin: str) -> Columns:
    """The columns that `wanted` names, and those that the features leave no doubt about.

    Found for labels: the only column of class labels, else one named `label`. For inputs: the only column of
    images or recordings, else the only one of bytes or arrays, which are then images, else the only column of texts
    that is neither label nor client.

    Raises:
        DataError: a column is missing or there is a choice; names every problem and the columns there are.
    """
    names = dataset.column_names
    problems = [
        f"no column {name!r} (`data.{key}_column`), the columns are {listed(names, 20)}"
        for key, name in vars(wanted).items()
        if name is not None and name not in names
    ]
    refuse(origin, problems)
    labels = [wanted.label] if wanted.label else _label_candidates(dataset)
    if len(labels) != 1:
        problems.append(_choice("label", "class labels, or one named 'label'", labels, names))
    candidates = _input_candidates(dataset, wanted, {*labels, wanted.client})
    if len(candidates) != 1:
        kinds = sorted(set(candidates.values()))
        key = kinds[0] if len(kinds) == 1 else "image_column`, `data.audio_column` or `data.text"
        problems.append(_choice(key, "images or recordings or, failing that, of texts", list(candidates), names))
    for name, kind in candidates.items():
        if kind == "text" and not _is_text(dataset.features[name]):
            problems.append(f"column {name!r} (`data.text_column`) is {dataset.features[name]}, expected texts")
    refuse(origin, problems)
    ((name, kind),) = candidates.items()
    return Columns(labels[0], name, wanted.client, kind)


def _input_candidates(dataset: Dataset, wanted: Wanted, taken: set[str | None]) -> dict[str, Modality]:
    """Columns that could be the inputs, and what they hold."""
    named: dict[Modality, str | None] = {"image": wanted.image, "text": wanted.text, "audio": wanted.audio}
    chosen: dict[str, Modality] = {name: kind for kind, name in named.items() if name is not None}
    return chosen or _media_candidates(dataset, taken) or dict.fromkeys(_text_candidates(dataset, taken), "text")


def _choice(key: str, expected: str, found: Sequence[str], names: Sequence[str]) -> str:
    what = f"{len(found)} columns that could be it ({listed(found)})" if found else "no such column"
    advice = f"set `data.{key}_column` to one of {listed(names, 20)}"
    return f"expected exactly one column of {expected}, found {what}; {advice}"


def _label_candidates(dataset: Dataset) -> list[str]:
    from datasets import ClassLabel

    of_classes = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    return ["label"] if "label" in dataset.column_names and len(of_classes) != 1 else of_classes


def _media_candidates(dataset: Dataset, taken: set[str | None]) -> dict[str, Modality]:
    from datasets import Array2D, Array3D, Audio, Image, List, Value

    media: dict[str, Modality] = {}
    stored: dict[str, Modality] = {}
    for name, feature in dataset.features.items():
        if name in taken:
            continue
        if isinstance(feature, Image | Audio):
            media[name] = "image" if isinstance(feature, Image) else "audio"
        elif isinstance(feature, Array2D | Array3D) or feature == Value("binary"):
            stored[name] = "image"
        elif isinstance(feature, dict | List):
            nested = feature.feature if isinstance(feature, List) else None
            if isinstance(nested, List) or (isinstance(feature, dict) and "bytes" in feature):
                stored[name] = "image"
    return media or stored


def _text_candidates(dataset: Dataset, taken: set[str | None]) -> list[str]:
    return [name for name, feature in dataset.features.items() if _is_text(feature) and name not in taken]


def _is_text(feature: object) -> bool:
    from datasets import Value

    return feature in (Value("string"), Value("large_string"))


def class_values(dataset: Dataset, column: str, *, origin: str) -> tuple[list[object], tuple[str, ...]]:
    """The classes of a training set in label order: as they stand in the column, and as names.

    Integers and texts sort by value, texts that are all whole numbers as numbers; class labels keep their own
    order and names.

    Raises:
        DataError: the column holds something else, or fewer than two classes.
    """
    from datasets import ClassLabel

    feature = dataset.features[column]
    values = [value for value in dataset.unique(column) if value is not None]
    kinds = sorted({type(value).__name__ for value in values})
    if kinds not in (["int"], ["str"], ["bool"]):
        refuse(origin, [f"label column {column!r} holds {listed(kinds) or 'nothing'}, expected integers or texts"])
    classes = range(feature.num_classes) if isinstance(feature, ClassLabel) else _sorted(values)
    names = feature.names if isinstance(feature, ClassLabel) else [str(value) for value in classes]
    if len(classes) < 2:
        refuse(origin, [f"label column {column!r} has one class only, {names[0]!r}, expected 2 or more"])
    return list(classes), tuple(names)


def _sorted(values: Sequence[Any]) -> list[object]:
    """In ascending order; Any: integers, truth values or texts, all of one type."""
    if all(isinstance(value, str) and value.isascii() and value.isdigit() for value in values):
        # The text itself last: "1" and "01" are two classes.
        return sorted(values, key=lambda value: (int(value), value))
    return sorted(values)


def label_numbers(dataset: Dataset, column: str, classes: Sequence[object], what: str) -> tuple[Tensor, list[str]]:
    """Labels as numbers in 0..len(classes)-1, int64 of shape [N], and problems.

    Args:
        dataset: N rows.
        column: holds the labels.
        classes: the value of each class.
        what: names the data set in problems, such as "test set".
    """
    number_of = {value: number for number, value in enumerate(classes)}
    values = dataset.with_format("arrow")[:].column(column).to_pylist()
    missing = [row for row, value in enumerate(values) if value is None]
    foreign = [row for row, value in enumerate(values) if value is not None and value not in number_of]
    problems = []
    if missing:
        problems.append(f"{what}: {len(missing)} rows without a label in column {column!r}: rows {listed(missing)}")
    if foreign:
        strange = sorted({str(values[row]) for row in foreign})
        problems.append(
            f"{what}: {len(foreign)} rows with labels outside the {len(classes)} classes: "
            f"labels {listed(strange)}, rows {listed(foreign)}; expected {listed(list(classes))}"
        )
    return torch.tensor([number_of.get(value, -1) for value in values], dtype=torch.int64), problems


def missing_columns(train: Dataset, test: Dataset, columns: Columns) -> list[str]:
    """What keeps `columns` of the training set from being used in the test set."""
    from datasets import ClassLabel

    names = test.column_names
    absent = [name for name in (columns.label, columns.input) if name not in names]
    if absent:
        return [f"test set: no column {name!r} as in the training set, found {listed(names, 20)}" for name in absent]
    ours, theirs = train.features[columns.label], test.features[columns.label]
    if isinstance(ours, ClassLabel) and isinstance(theirs, ClassLabel) and ours.names != theirs.names:
        # The numbers of two such columns mean different classes.
        return [f"test set: classes {listed(theirs.names)} differ from the training set's {listed(ours.names)}"]
    return []
