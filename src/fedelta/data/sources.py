"""Section `[data]`, and reading the data that it names.

This takes two steps: building the model needs the classes, and making inputs needs the model.

    raw = read(source, seed=seed, task=task)                # rows, targets, class names
    data = federate(raw, settings, modality, seed=seed)     # in federate.py: inputs, rows of each client
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, FiniteFloat, field_validator, model_validator

from fedelta.data.broken_lines import separated
from fedelta.data.columns import Columns, NamedColumns, find_columns, missing_columns, target_column, unequal_lengths
from fedelta.data.dialogues import with_dialogues
from fedelta.data.files import AT_THE_SITES, EMBEDDED, NAMES, missing_path
from fedelta.data.folders import Splits
from fedelta.data.naming import CLIENT, LABEL, SPLIT, Naming, expression, levels_in
from fedelta.data.sets import TEST, load_sets
from fedelta.data.skipping import RENUMBERED, Screening, Skipped, screened
from fedelta.data.splits import Rows, hold_out, limit
from fedelta.data.values import Ids, read_ids
from fedelta.errors import DataError, listed, refuse
from fedelta.modalities.base import Modality
from fedelta.modalities.settings import AudioSettings, Preparation, Resize
from fedelta.seeds import stream
from fedelta.settings import Context, Settings
from fedelta.settings.paths import InFull, in_full_where_it_exists, is_in_python
from fedelta.tasks.base import Task, reads_dialogues
from fedelta.tasks.classification import Classification
from fedelta.tasks.contract import targets_of
from fedelta.tasks.known_classes import KnownClasses

if TYPE_CHECKING:
    from datasets import Dataset


def _in_full(source: str) -> str:
    return source if source in {AT_THE_SITES, *NAMES} else in_full_where_it_exists(source)


logger = logging.getLogger("fedelta")

Place = Annotated[str, InFull(_in_full)]


class DataSource(Settings):
    """The data to train and evaluate on: section `[data]`.

    Args:
        source: one of: `digits` (scikit-learn's, embedded); `digit-scenes`
            (up to four of them in a picture: columns `digits`, `number`, `sum`); `small-world` (instructions, made by
            this package, of eight clients in the column `client`); `small-notes` (notes with tags, made likewise, of
            six clients in the column `site`); a folder of images or recordings (WAV, FLAC, OGG, MP3) with one
            sub-folder per class, also below `train/` and `test/` (see `folders`), or with a table `metadata.csv`
            or `.jsonl` that has a column `file_name`; a Parquet, CSV, JSON or JSON Lines file, or a folder of them (a
            column `split` may separate training from test rows); data written by `save_to_disk` of `datasets`; JSON in
            LEAF's format, whose users become clients; the name of a data set on the hub. `sites`: the server of a
            deployment has no training data, and each site reads its own. `python:data`: the data were given as objects
            (`fedelta.federate`).
        test_source: where the test set is, if not in `source`.
        subset: configuration of a data set on the hub.
        label_column: column of targets: integers, texts or class labels for classification, numbers with a decimal
            point for regression.
        label_columns: several columns of targets, for a task that takes several: 0 or 1 in each for `multi-label`, a
            number in each for `regression`.
        image_column: column of images: encoded, as arrays (integers 0..255, floats 0..1, or other numbers, whose range
            is taken from the training data), or as file paths relative to the folder of the table.
        text_column: column of texts; at most one of the three input columns is set.
        audio_column: column of recordings: encoded, or as file paths relative to the folder of the table.
        words_column: column of texts that are given as lists of words, for tags.
        prompt_column, response_column: columns of a dialogue of two turns, for language models.
        messages_column: column of longer dialogues, for language models: lists of messages with `role` and `content`.
        client_column: column with the id of each row's client.
        file_pattern: meaning of file names in a folder, without their suffix, such as `{label}_{client}_{index}`.
            `label` replaces the sub-folder, `client` is the client of the file (`client_column` is not needed), other
            fields are ignored. With a pattern, CSV and JSON files in the folder are ignored.
        folders: meaning of each level of folders, from the top: `split`, `client`, `label`, or `*` for a level to
            ignore, such as `client/label` or `split/client/label`; deeper folders are ignored. By default inferred, if
            there is only one way to read the folders.
        test_files: glob of the files of a folder that form the test set, such as `*_[0-4].wav`, or `noisy/*` for those
            in folders of that name; the others are for training.
        audio: how recordings become spectrograms.
        resize: how images are resized to the model's input. "checkpoint": by the checkpoint's image processor (its
            resizing, cropping and filter, scaled if `model.image_size` differs). "stretch": bilinear to a square,
            without keeping the aspect ratio; also used if a checkpoint has no processor.
        value_range: the values that become black and white in images of more than 8 bits; by default the smallest and
            the largest one of the training data, which no site of a deployment sees as a whole.
        train_split: the split to train on; if there is no split of this name, synonyms such as `Train` or `training`
            are accepted.
        test_split: the split to evaluate on, with synonyms likewise. If there is no test split, the validation split
            is used; if there is neither, `test_fraction` applies.
        test_fraction: share of the training rows that becomes the test set, stratified by class.
        evaluate_on: "validation" holds back `validation_fraction` of each client's rows after the data were divided,
            and evaluates on them; the test set is not used.
        validation_fraction: share of each client's rows, rounded to the nearest number; each client keeps at least one.
        max_length: maximum number of tokens of a text; longer texts are cut, of dialogues the beginning of the prompt.
        max_train_examples: maximum number of training rows, drawn in equal shares of each class.
        max_test_examples: maximum number of test rows, drawn in equal shares of each class.
        on_error: "stop": examples that cannot be read are an error. "skip": images, recordings, texts and dialogues
            that cannot be read, rows without a label or client, and broken lines of CSV and JSON Lines files are left
            out before anything is drawn, and listed in `skipped.csv` of the run. Every file is then decoded once more.
        max_memory_mib: decoded images, and spectrograms, are kept in memory up to this many MiB for each of training
            and test set.
    """

    source: Place
    test_source: Place | None = None
    subset: str | None = None
    label_column: str | None = None  # found by kind and name; an error if several columns are possible
    label_columns: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    image_column: str | None = None
    text_column: str | None = None
    audio_column: str | None = None
    words_column: str | None = None
    prompt_column: str | None = None
    response_column: str | None = None
    messages_column: str | None = None
    client_column: str | None = None
    file_pattern: str | None = None
    folders: str | None = None
    test_files: str | None = None
    audio: AudioSettings = AudioSettings()
    resize: Resize = "checkpoint"  # as in the checkpoint's training
    value_range: Annotated[tuple[FiniteFloat, FiniteFloat], Field(strict=False)] | None = None
    train_split: str = "train"  # the hub's usual names
    test_split: str = TEST
    test_fraction: float = Field(default=0.2, gt=0, lt=1)  # 1,437 of the 1,797 digits remain for training
    evaluate_on: Literal["test", "validation"] = "test"
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)  # as `test_fraction`
    # The text classification example of transformers; a million tokens is beyond any model, and limits memory.
    max_length: int = Field(default=128, ge=1, le=1_000_000)
    max_train_examples: int | None = Field(default=None, ge=2)  # all
    max_test_examples: int | None = Field(default=None, ge=1)  # all
    on_error: Literal["stop", "skip"] = "stop"  # nothing is left out without being asked
    max_memory_mib: int = Field(default=2048, ge=0)  # a quarter of a small machine's 8 GiB

    @field_validator("value_range")
    @classmethod
    def _ascending(cls, value_range: tuple[float, float] | None) -> tuple[float, float] | None:
        if value_range is not None and value_range[0] >= value_range[1]:
            raise ValueError(f"expected a smaller number and a larger one, found {list(value_range)}")
        return value_range

    @field_validator("file_pattern")
    @classmethod
    def _readable(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            expression(pattern)
        return pattern

    @field_validator("folders")
    @classmethod
    def _known(cls, folders: str | None) -> str | None:
        if folders is not None:
            levels_in(folders)
        return folders

    @model_validator(mode="after")
    def _one_of_each(self) -> DataSource:
        if repeated := sorted(self.naming.fields & {CLIENT, LABEL} & set(self.naming.levels or ())):
            raise ValueError(f"file_pattern and folders both have {listed(repeated)}, expected only one of them")
        if self.test_files is not None and SPLIT in (self.naming.levels or ()):
            raise ValueError("test_files is set and folders has 'split', expected only one of them")
        tests = {"test_files": self.test_files, "test_source": self.test_source}
        labels = {"label_column": self.label_column, "label_columns": self.label_columns}
        if repeated := [name for name, number in Counter(self.label_columns).items() if number > 1]:
            raise ValueError(f"label_columns has {listed(repeated)} more than once")
        for values in ({f"{name}_column": column for name, column in self._input_columns.items()}, tests, labels):
            keys = [name for name, value in values.items() if value is not None]
            if len(keys) > 1:
                raise ValueError(f"{' and '.join(keys)} are set, expected only one of them")
        return self

    def problems(self, context: Context) -> list[str]:
        """Messages about paths that do not exist; possible names of data sets on the hub pass. Reads nothing.

        >>> DataSource(source="digits", test_source="/absent/test.csv").problems(Context({}))
        ["`data.test_source`: '/absent/test.csv' does not exist (looked in /absent)"]
        """
        sources = {"source": self.source, "test_source": self.test_source}
        problems = {key: None if value is None else missing_path(value) for key, value in sources.items()}
        return [f"`data.{key}`: {problem}" for key, problem in problems.items() if problem is not None]

    @property
    def named_columns(self) -> NamedColumns:
        """The columns that the configuration names."""
        inputs = {name: column for name, column in self._input_columns.items() if column is not None}
        parts = {"prompt": self.prompt_column, "response": self.response_column, "messages": self.messages_column}
        dialogue = {name: column for name, column in parts.items() if column is not None}
        labels = self.label_columns or (() if self.label_column is None else (self.label_column,))
        return NamedColumns(labels, self.client, inputs, dialogue)

    @property
    def preparation(self) -> Preparation:
        """How examples of any modality become inputs."""
        return Preparation(
            max_length=self.max_length, audio=self.audio, resize=self.resize, value_range=self.value_range
        )

    @property
    def _input_columns(self) -> dict[str, str | None]:
        return {
            "image": self.image_column,
            "text": self.text_column,
            "audio": self.audio_column,
            "words": self.words_column,
        }

    @property
    def naming(self) -> Naming:
        """The meaning of names of files, folders and splits."""
        paths_in = tuple(column for column in (self.image_column, self.audio_column) if column is not None)
        return Naming(
            self.file_pattern, self.test_files, self.train_split, self.test_split, self.folders, paths_in=paths_in,
            marks_broken=self.on_error == "skip",
        )  # fmt: skip

    @property
    def client(self) -> str | None:
        """The column of client ids: the configured one, else that of a file pattern or of folders."""
        return self.client_column or (CLIENT if self.naming.names_clients else None)

    @property
    def may_name_clients(self) -> bool:
        """Whether the data may name clients themselves, as LEAF's format and sites do; only reading them shows."""
        if self.source == AT_THE_SITES or is_in_python(self.source):
            return True
        path = Path(self.source)
        return path.suffix.lower() == ".json" or any(True for _ in path.rglob("*.json"))


@dataclass(frozen=True)
class RawData:
    """Rows and targets as read, before a model is known.

    Args:
        source: the section that was read.
        train: training rows, numbered as in the split that they come from.
        test: test rows likewise; rows split off from the training set keep their numbers in it.
        class_names: of the outputs (`ReadTargets`).
        strata_names: one per stratum (`Targets.strata`).
        columns: the columns in use.
        at_a_glance: whether examples are read lazily instead of all at once (see `glance.py`).
        skipped: examples that could not be read and were left out.
    """

    source: DataSource
    train: Rows
    test: Rows
    class_names: tuple[str, ...]
    strata_names: tuple[str, ...]
    columns: Columns
    at_a_glance: bool = False
    skipped: tuple[Skipped, ...] = ()

    @property
    def modality(self) -> type[Modality]:
        """The modality of the inputs: images, texts or recordings."""
        return self.columns.modality

    @property
    def preparation(self) -> Preparation:
        """The settings in `[data]` for turning examples of this modality into inputs."""
        return self.source.preparation.only(self.modality.settings)

    @cached_property
    def train_ids(self) -> Ids | None:
        """The client of each training row; None if the data do not name clients.

        Raises:
            DataError: some values are not valid ids.
        """
        return self._ids(self.train, "training set")

    @cached_property
    def test_ids(self) -> Ids | None:
        """The client of each test row; None if the data do not name clients."""
        return self._ids(self.test, "test set")

    def _ids(self, rows: Rows, what: str) -> Ids | None:
        column = self.columns.client
        if column is None or column not in rows.dataset.column_names:
            return None
        return read_ids(rows.dataset, column, what, rows.numbers)

    def without_test_rows_of(self, ids: Set[object]) -> RawData:
        """A copy without the test rows of these clients; `self` if the test set does not name clients.

        Raises:
            DataError: no rows would be left.
        """
        test_ids = self.test_ids if ids else None
        names = set(map(str, ids))  # compared as texts, as in `Clients`: one file may hold numbers, the other texts
        if test_ids is None or not any(is_removed := [str(name) in names for name in test_ids.names]):
            return self
        if all(is_removed):
            raise DataError(
                f"every row of the test set belongs to a held-out client: {listed(sorted(map(str, ids)))}",
                hint="hold out other clients, or set `data.test_source` to a separate test set.",
            )
        return replace(self, test=self.test.select((~torch.tensor(is_removed)).nonzero()[:, 0]))


def read(
    source: DataSource,
    *,
    seed: int,
    task: Task = Classification(),  # noqa: B008 a frozen value
    known: KnownClasses | None = None,
    loaded: Splits | None = None,
) -> RawData:
    """Reads the training and the test set of `source`.

    Args:
        source: section `[data]`.
        seed: of the run; determines which rows become test rows if there is no test split, and which rows remain if
            their number is limited.
        task: what is predicted.
        known: the classes, if they are known before; by default they are those of the training set.
        loaded: the splits, if they are not to be read.

    Raises:
        DataError: the data are missing, unreadable or incomplete; lists all problems.
    """
    origin = f"data source {source.source!r}"
    train, test, splits = load_sets(source, origin, loaded)
    train, broken = separated(train)
    test, test_broken = (None, {}) if test is None else separated(test)
    named = source.named_columns if source.client else replace(source.named_columns, client=splits.client)
    train, test, columns = _with_columns(train, test, named, task, origin)
    screening = Screening(source.preparation, task, columns) if source.on_error == "skip" else None
    of_train, of_test = screened(train, test, screening, (broken, test_broken))
    train, test = of_train.dataset, None if of_test is None else of_test.dataset
    lacking = _lacking(train, test, columns)
    train_column = target_column(train, columns.labels, "training set")
    test_column = (
        None if test is None or missing_columns(test, columns) else target_column(test, columns.labels, "test set")
    )
    if known is not None and task.has_classes:
        plain_test = None if test_column is None else task.plain(test_column)
        train_column, test_column = known.of_data(task.plain(train_column), plain_test, origin)
    targets = targets_of(task, train_column, test_column)
    skipped = (*of_train.skipped, *(() if of_test is None else of_test.skipped))
    refuse(origin, [*targets.problems, *lacking], hint=RENUMBERED if skipped else None)
    _tell(*splits.notes, *targets.notes)
    train_rows = Rows(train, targets.train, of_train.numbers)
    if of_test is None or targets.test is None:
        train_rows, test_rows = hold_out(train_rows, source.test_fraction, stream(seed, "data", "test"))
    else:
        test_rows = Rows(of_test.dataset, targets.test, of_test.numbers)
    train_rows = limit(train_rows, source.max_train_examples, stream(seed, "data", "train subset"))
    test_rows = limit(test_rows, source.max_test_examples, stream(seed, "data", "test subset"))
    return RawData(source, train_rows, test_rows, targets.class_names, targets.strata_names, columns, skipped=skipped)


def _tell(*notes: str) -> None:
    for note in notes:
        logger.warning("%s", note)


def _with_columns(
    train: Dataset, test: Dataset | None, named: NamedColumns, task: Task, origin: str
) -> tuple[Dataset, Dataset | None, Columns]:
    """Both sets and the columns in use; those of dialogues are joined into one."""
    if reads_dialogues(task):
        return with_dialogues(train, test, named, origin=origin)
    return train, test, find_columns(train, named, task, origin=origin)


def _lacking(train: Dataset, test: Dataset | None, columns: Columns) -> list[str]:
    """Messages about columns that the test set lacks, and about rows whose columns differ in length."""
    sets = {"training set": train} | ({} if test is None else {"test set": test})
    unequal = [problem for what, rows in sets.items() for problem in unequal_lengths(rows, columns, what)]
    return [*([] if test is None else missing_columns(test, columns)), *unequal]


def class_names(source: DataSource, *, seed: int, task: Task) -> tuple[str, ...]:
    """The names of the classes, as `read` finds them; those of the embedded digits are known without reading them.

    Raises:
        DataError: as `read`.
    """
    if source == DataSource(source=EMBEDDED) and task == Classification():
        return tuple("0123456789")
    return read(source, seed=seed, task=task).class_names
