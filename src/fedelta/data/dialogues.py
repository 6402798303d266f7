"""Finds the columns of dialogues, and joins them into one.

A dialogue is in two columns (a prompt and its response; what a prompt is about may be in a third), in one of messages,
or in one of plain texts. Columns that the configuration does not name are found by the names that instruction data sets
give them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedelta.data.columns import Columns, NamedColumns, no_column
from fedelta.errors import listed, refuse
from fedelta.modalities.base import Inputs
from fedelta.modalities.dialogues import IGNORED, StoredDialogues
from fedelta.modalities.text import Texts
from fedelta.tasks.language import TokenCounts
from fedelta.tasks.targets import Targets

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Array

logger = logging.getLogger("fedelta")

DIALOGUE = "dialogue"  # the name of the joined column

# Usual names of each part, in the order of preference.
_PROMPTS = ("prompt", "instruction", "question", "input")
_RESPONSES = ("response", "completion", "output", "answer")
_MESSAGES = ("messages", "conversations", "conversation")
_TEXTS = ("text", "content")
# What an instruction or a question may be about, in a column of its own.
_SUBJECTS = ("input", "context")
_LABELS = ("label", "labels", "class", "category", "target")  # usual names of what a classification predicts
_KEYS = {"prompt": _PROMPTS, "response": _RESPONSES, "messages": _MESSAGES, "text": _TEXTS}


def dialogue_columns(dataset: Dataset, named: NamedColumns, *, origin: str) -> tuple[str, ...]:
    """The columns of dialogues: a prompt, perhaps what it is about, and a response; or one of messages or texts.

    Raises:
        DataError: a column is missing, or several forms are possible.
    """
    names = dataset.column_names
    keys = {**named.dialogue, **{name: column for name, column in named.inputs.items() if name == "text"}}
    problems = [
        no_column(column, f"data.{key}_column", names)
        for key, column in {**keys, **({"client": named.client} if named.client else {})}.items()
        if column not in names
    ]
    if others := {**({"label": named.labels[0]} if named.labels else {}), **{
        name: column for name, column in named.inputs.items() if name != "text"
    }}:  # fmt: skip
        key = next(iter(others))
        problems.append(f"`data.{key}_column` is {others[key]!r}, which a language model does not read; {_CHOICE}")
    if keys.keys() not in (set(), {"prompt"}, {"response"}, {"prompt", "response"}, {"messages"}, {"text"}):
        problems.append(f"`data.{'_column` and `data.'.join(keys)}_column` are set; {_CHOICE}")
    refuse(origin, problems)
    if "messages" in keys:
        refuse(origin, _no_messages(dataset, keys["messages"]))
    if "messages" in keys or "text" in keys:
        return tuple(keys.values())
    found = {key: next((name for name in usual if name in names), None) for key, usual in _KEYS.items()} | keys
    pair = (found["prompt"], found["response"])
    forms = [form for form in (pair, (found["messages"],), (found["text"],)) if all(form)]
    # A table of prompts and responses often has their text or messages beside them; named columns decide.
    if keys:
        forms = forms[:1] if all(pair) else []
    elif len(forms) > 1 and forms[-1] == (found["text"],):
        forms = forms[:-1]
    if len(forms) != 1:
        what = f"several forms of dialogues ({listed([' and '.join(map(str, form)) for form in forms])})"
        refuse(origin, [f"found {what if forms else 'no column of dialogues'} among {listed(names, 20)}; {_CHOICE}"])
    columns = tuple(str(name) for name in forms[0])
    refuse(origin, _no_messages(dataset, columns[0]) if columns == (found["messages"],) else [])
    if columns == (found["text"],) and (labels := [name for name in names if name in _LABELS]):
        logger.warning(
            "column %r is learned as plain texts, and column %r is not used: if it holds what is to be predicted, set "
            "`task.name` to 'classification'; if not, `data.text_column` says that it is meant so.",
            columns[0],
            labels[0],
        )
    return _with_subject(columns, dataset) if not keys and columns == pair else columns


def _with_subject(pair: tuple[str, ...], dataset: Dataset) -> tuple[str, ...]:
    """The prompt and the response, and between them a column of texts that an instruction or a question is about."""
    if pair[0] not in ("instruction", "question"):
        return pair
    texts = [name for name in _SUBJECTS if name in dataset.column_names and _has_texts(dataset, name)]
    return (pair[0], *texts[:1], pair[1])


def _no_messages(dataset: Dataset, column: str) -> list[str]:
    """What is wrong with a column of messages that holds texts, which would be trained on as they are."""
    if not _has_texts(dataset, column):
        return []
    forms = "which JSON Lines and Parquet files can hold and CSV cannot; for plain texts set `data.text_column`"
    return [f"column {column!r} holds texts, expected lists of messages with `role` and `content`, {forms}"]


def _has_texts(dataset: Dataset, column: str) -> bool:
    return getattr(dataset.features[column], "dtype", None) in {"string", "large_string"}


_CHOICE = "set `data.prompt_column` and `data.response_column`, or `data.messages_column`, or `data.text_column`"


def joined(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """The data set with its dialogues in one column, `DIALOGUE`; others are kept.

    Args:
        dataset: from `datasets`.
        columns: as from `dialogue_columns`; what a prompt is about follows it after an empty line.
    """
    import pyarrow as pa
    from datasets import Dataset as Rows
    from datasets import DatasetInfo, Features

    table, features = dataset.with_format("arrow")[:], dataset.features
    parts = [table.column(name).combine_chunks() for name in columns]
    if len(columns) == 1:
        dialogue, kind = parts[0], features[columns[0]]
    else:
        prompts = parts[0] if len(parts) == 2 else _about(parts[0], parts[1])
        dialogue = pa.StructArray.from_arrays([prompts, parts[-1]], names=["prompt", "response"])
        kind = {"prompt": features[columns[0]], "response": features[columns[-1]]}
    others = [name for name in table.column_names if name not in {*columns, DIALOGUE}]
    arrays = {DIALOGUE: dialogue, **{name: table.column(name) for name in others}}
    return Rows(
        pa.table(arrays), DatasetInfo(features=Features({DIALOGUE: kind, **{name: features[name] for name in others}}))
    )


def _about(prompts: Array, subjects: Array) -> Array:
    """Each prompt with what it is about, if that is not empty, after an empty line."""
    import pyarrow.compute as pc

    subjects = pc.fill_null(subjects.cast(prompts.type), "")
    both = pc.binary_join_element_wise(prompts, subjects, "\n\n")
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(subjects), ""), prompts, both)


@dataclass(frozen=True)
class CountsAtAGlance:
    """The number of tokens of each row that are trained on, counted when they are fetched.

    Args:
        inputs: of dialogues.
        rows: of `inputs`, int64.
    """

    inputs: Inputs
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, rows: Tensor) -> Tensor:
        """The counts of `rows`."""
        labels = self.inputs.fetch(self.rows[rows])["labels"]
        return (labels[:, 1:] != IGNORED).sum(1).float()

    def select(self, rows: Tensor) -> CountsAtAGlance:
        """The counts of `rows` alone."""
        return CountsAtAGlance(self.inputs, self.rows[rows])

    @property
    def strata(self) -> None:
        """None: dialogues have no kinds."""
        return None


def counted(inputs: Inputs, targets: Targets) -> Targets:
    """The targets of these inputs: of dialogues the number of their tokens, of all others `targets`."""
    if isinstance(inputs, StoredDialogues):
        return TokenCounts(inputs.num_targets.float())
    if isinstance(targets, TokenCounts):
        return CountsAtAGlance(inputs, torch.arange(len(inputs)))
    return targets


def with_dialogues(
    train: Dataset, test: Dataset | None, named: NamedColumns, *, origin: str
) -> tuple[Dataset, Dataset | None, Columns]:
    """Both sets with their dialogues in one column, and the columns in use.

    Raises:
        DataError: there is no column of dialogues, or the test set lacks one.
    """
    columns = dialogue_columns(train, named, origin=origin)
    if test is not None and (absent := [name for name in columns if name not in test.column_names]):
        lacking = f"no column {absent[0]!r} as in the training set, found {listed(test.column_names, 20)}"
        refuse(origin, [f"test set: {lacking}"])
    used = Columns((DIALOGUE,), DIALOGUE, named.client, Texts)
    return joined(train, columns), None if test is None else joined(test, columns), used
