"""Finds the columns of targets, of inputs (images, texts or recordings) and of clients.

A column that the configuration does not name is found from the features of the data set. If several columns are
possible, that is an error: a wrong guess would silently train on the wrong data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING

from fedelta.data.values import values_of
from fedelta.errors import listed, refuse
from fedelta.modalities.base import Certainty, FeatureKind, Modality
from fedelta.modalities.table import MODALITIES
from fedelta.modalities.waveforms import is_recording
from fedelta.tasks.base import Task
from fedelta.tasks.targets import TargetColumn

if TYPE_CHECKING:
    from datasets import Dataset

# Prefix of a numeric type to its name in `Task.candidates`.
_NUMBERS = {"int": "integer", "uint": "integer", "float": "float", "double": "float", "half": "float"}

# The Arrow types that Parquet files may have for bytes and for texts.
_BYTES = frozenset({"binary", "large_binary", "binary_view"})
_TEXTS = frozenset({"string", "large_string", "string_view"})


@dataclass(frozen=True)
class Columns:
    """The names of the columns in use, and the modality of the inputs.

    Args:
        labels: of the targets.
        input: of the examples.
        client: of the clients' ids; None without one.
        modality: of the examples.
    """

    labels: tuple[str, ...]
    input: str
    client: str | None
    modality: type[Modality]


@dataclass(frozen=True)
class NamedColumns:
    """The columns that the configuration names; None where a column has to be found.

    Args:
        labels: columns of the targets.
        client: column of the clients' ids.
        inputs: name of a modality to its column; at most one.
        dialogue: part of a dialogue ("prompt", "response", "messages") to its column.
    """

    labels: tuple[str, ...] = ()
    client: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    dialogue: Mapping[str, str] = field(default_factory=dict)

    @property
    def with_keys(self) -> list[tuple[str, str]]:
        """The columns that are named, each after its key in `[data]`."""
        key = "label_column" if len(self.labels) == 1 else "label_columns"
        others = {"client": self.client, **self.inputs, **self.dialogue}
        return [
            *((key, name) for name in self.labels),
            *((f"{key}_column", name) for key, name in others.items() if name is not None),
        ]


NO_LISTS = "lists of words and of their tags are in JSON Lines or Parquet files; a CSV file cannot hold them."


def find_columns(dataset: Dataset, named: NamedColumns, task: Task, *, origin: str) -> Columns:
    """The columns that the configuration names, and the others found from the features.

    The target column is chosen by `Task.candidates`. The input column is the only one that certainly holds examples of
    a modality (images, recordings), else the only one that probably does (bytes and arrays, taken for images), else the
    only column of texts that is neither target nor client; see `Modality.columns`.

    Raises:
        DataError: a column is missing, or several are possible; lists all problems and columns.
    """
    names = dataset.column_names
    problems = [no_column(name, f"data.{key}", names) for key, name in named.with_keys if name not in names]
    if named.dialogue:
        key = next(iter(named.dialogue))
        problems.append(f"`data.{key}_column` is set, but task {task.name!r} reads no dialogues; leave it out")
    refuse(origin, problems)
    labels = list(named.labels) or task.candidates(kinds_of(dataset))
    if len(labels) != 1 and not named.labels:
        problems.append(_choice("label_column", task.column, labels, names) + _other_task(task, dataset))
    candidates = _input_candidates(dataset, named, {*labels, named.client}, task)
    if len(candidates) != 1:
        modalities = sorted({modality.name for modality in candidates.values()})
        keys = input_keys(task) if len(modalities) != 1 else f"{modalities[0]}_column"
        other = "" if problems or candidates else _other_task(task, dataset)
        problems.append(_choice(keys, _expected(task), list(candidates), names) + other)
    for name, modality in candidates.items():
        rule = modality.columns
        if rule.is_strict and _kind_of(dataset.features[name]) not in rule.kinds:
            column = f"column {name!r} (`data.{modality.name}_column`)"
            problems.append(f"{column} is {dataset.features[name]}, expected {modality.plural}")
    has_lists = any(_kind_of(feature) == "words" for feature in dataset.features.values())
    hint = NO_LISTS if task.loader("words") is not None and not has_lists else None
    refuse(origin, problems, hint=hint)
    ((name, modality),) = candidates.items()
    return Columns(tuple(labels), name, named.client, modality)


def no_column(name: str, key: str, names: Sequence[str]) -> str:
    """The message for a column that a table does not have; names the nearest one.

    >>> no_column("Label", "data.label_column", ["text", "label"])
    "no column 'Label' (`data.label_column`), the columns are 'text', 'label'; did you mean 'label'?"
    """
    folded = {other.casefold().strip(): other for other in names}
    nearest = get_close_matches(name.casefold().strip(), folded, n=1)
    advice = f"; did you mean {folded[nearest[0]]!r}?" if nearest else ""
    return f"no column {name!r} (`{key}`), the columns are {listed(names, 20)}{advice}"


def input_keys(task: Task) -> str:
    """The keys of `[data]` that name a column of inputs for a task, as part of a sentence in backticks.

    >>> from fedelta.tasks.classification import Classification
    >>> input_keys(Classification())
    'image_column`, `data.audio_column` or `data.text_column'
    """
    *keys, last = (f"{modality.name}_column" for modality in _read_by(task))
    return f"{'`, `data.'.join(keys)}` or `data.{last}" if keys else last


def _read_by(task: Task) -> list[type[Modality]]:
    """The modalities for which there are models for `task`."""
    return [modality for name, modality in MODALITIES.items() if task.loader(name) is not None]


def _input_candidates(
    dataset: Dataset, named: NamedColumns, other: set[str | None], task: Task
) -> dict[str, type[Modality]]:
    """The columns that may be the inputs with the highest certainty, and their modality.

    Args:
        dataset: the training set.
        named: columns that the configuration names.
        other: columns of targets and clients.
        task: what is predicted; its models read some modalities only.
    """
    if named.inputs:
        return {column: MODALITIES[name] for name, column in named.inputs.items()}
    rated: list[tuple[Certainty, str, type[Modality]]] = []
    for name, feature in dataset.features.items():
        kind = None if name in other else _kind_of(feature)
        if kind == "bytes" and is_recording(_first(dataset, name)):
            kind = "audio"
        if kind is not None:
            kinds = ((modality.columns.kinds.get(kind), modality) for modality in _read_by(task))
            rated += [(certainty, name, modality) for certainty, modality in kinds if certainty is not None]
    surest = min((certainty for certainty, _, _ in rated), default=None)
    return {name: modality for certainty, name, modality in rated if certainty == surest}


def _first(dataset: Dataset, column: str) -> object:
    """The first value of a column, in stored form."""
    return dataset.select_columns([column]).with_format("arrow")[:1].column(0)[0].as_py()


def _kind_of(feature: object) -> FeatureKind | None:
    """The kind of a column's content; None if no modality reads it, such as numbers."""
    from datasets import Array2D, Array3D, Audio, Image, LargeList, List, Value

    match feature:
        case Image():
            return "image"
        case Audio():
            return "audio"
        case Array2D() | Array3D() | List(feature=List()):
            return "array"
        case {"array": _, "sampling_rate": _}:
            return "audio"
        case {"bytes": _}:
            return "bytes"
        case List() | LargeList() if _value_kind(feature.feature) == "text":
            return "words"
    if isinstance(feature, Value) and feature.dtype in _BYTES:
        return "bytes"
    return "text" if isinstance(feature, Value) and feature.dtype in _TEXTS else None


def _expected(task: Task) -> str:
    """A description of the possible input columns for messages, in order of preference."""
    all_ranks = {modality.plural: modality.columns.kinds.values() for modality in _read_by(task)}
    first = [plural for plural, ranks in all_ranks.items() if Certainty.FALLBACK not in ranks]
    fallback = [plural for plural in all_ranks if plural not in first]
    return f"{' or '.join(first)}{' or, failing that, of ' if first and fallback else ''}{' or '.join(fallback)}"


def _choice(key: str, expected: str, candidates: Sequence[str], names: Sequence[str]) -> str:
    found = f"{len(candidates)} possible columns ({listed(candidates)})" if candidates else "no such column"
    advice = f"set `data.{key}` to one of {listed(names, 20)}"
    return f"expected exactly one column of {expected}, found {found}; {advice}"


def _other_task(task: Task, dataset: Dataset) -> str:
    """The task that the names of the columns speak of, or their kinds, if it is another one."""
    names = dataset.column_names
    lists = [name for name in names if _kind_of(dataset.features[name]) == "words"]
    chats, words, tags = {"prompt", "response", "messages"}, {"tokens", "words"}, {"tags", "ner_tags", "pos_tags"}
    if {"prompt", "response"} <= set(names) or "messages" in names:
        other, what = "language", listed(sorted(chats & set(names)))
    elif words & set(names) and tags & set(names):
        other, what = "tokens", listed(sorted((words | tags) & set(names)))
    elif len(lists) > 1:
        other, what = "tokens", listed(lists)
    else:
        return ""
    return "" if other == task.name else f'; for the columns {what}, set `task.name` = "{other}"'


def kinds_of(dataset: Dataset) -> dict[str, str | None]:
    """Column to kind of content: "image", "audio", "text", "classes", "lists of text" and so on; None for others."""
    from datasets import LargeList, List

    kinds: dict[str, str | None] = {}
    for name, feature in dataset.features.items():
        if isinstance(feature, List | LargeList) and (item := _value_kind(feature.feature)) is not None:
            kinds[name] = f"lists of {item}"
        else:
            kinds[name] = _value_kind(feature) or _kind_of(feature)
    return kinds


def _value_kind(feature: object) -> str | None:
    """The kind of a single value: class labels, numbers or texts; None for anything else."""
    from datasets import ClassLabel, Value

    if isinstance(feature, ClassLabel):
        return "classes"
    dtype = feature.dtype if isinstance(feature, Value) else ""
    numeric = next((kind for prefix, kind in _NUMBERS.items() if dtype.startswith(prefix)), None)
    return numeric or ("text" if dtype in _TEXTS else None)


def target_column(dataset: Dataset, columns: Sequence[str], what: str) -> TargetColumn:
    """The target column, or several of them side by side, for a task to read.

    Args:
        dataset: N rows.
        columns: names; several become one column of lists.
        what: name of the data set in messages, such as "test set".
    """
    from datasets import ClassLabel, LargeList, List

    values = [values_of(dataset, column) for column in columns]
    if len(columns) > 1:
        return TargetColumn(", ".join(columns), what, list(map(list, zip(*values, strict=True))), parts=tuple(columns))
    feature = dataset.features[columns[0]]
    feature = feature.feature if isinstance(feature, List | LargeList) else feature
    return TargetColumn(columns[0], what, values[0], tuple(feature.names) if isinstance(feature, ClassLabel) else None)


def missing_columns(test: Dataset, columns: Columns) -> list[str]:
    """Messages about columns of the training set that the test set lacks."""
    names = test.column_names
    absent = [name for name in (*columns.labels, columns.input) if name not in names]
    return [f"test set: no column {name!r} as in the training set, found {listed(names, 20)}" for name in absent]


def unequal_rows(dataset: Dataset, columns: Columns) -> list[int]:
    """The rows whose lists of words and of targets have different lengths."""
    if columns.modality.name != "words" or any(name not in dataset.column_names for name in columns.labels):
        return []
    pairs = zip(values_of(dataset, columns.input), values_of(dataset, columns.labels[0]), strict=True)
    return [
        row
        for row, (words, tags) in enumerate(pairs)
        if isinstance(words, list) and isinstance(tags, list) and len(words) != len(tags)
    ]


def unequal_lengths(dataset: Dataset, columns: Columns, what: str) -> list[str]:
    """A message about rows whose lists of words and of targets have different lengths, if there are such rows."""
    wrong = unequal_rows(dataset, columns)
    if not wrong:
        return []
    names = f"{columns.input!r} and {columns.labels[0]!r}"
    return [
        f"{what}: columns {names} differ in length in {len(wrong)} rows: rows {listed(wrong)}; each word needs a tag"
    ]
