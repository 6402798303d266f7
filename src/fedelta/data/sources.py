"""Where the data come from: the `[data]` section, and reading it.

Two steps, because a model can only be built when the classes are known, and inputs only when the model is:

    raw = read(source, seed=seed, task=task)                # rows, targets, class names
    data = federate(raw, settings, modality, seed=seed)     # in federate.py: inputs, rows of each client
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, field_validator, model_validator

from fedelta.data.columns import Columns, Wanted, find_columns, missing_columns, readable, target_column
from fedelta.data.files import EMBEDDED, load_splits, missing_path
from fedelta.data.folders import CLIENT, Naming, expression
from fedelta.data.splits import Rows, hold_out, limit
from fedelta.errors import DataError, listed, refuse
from fedelta.modalities.base import Modality
from fedelta.modalities.settings import AudioSettings, Preparation, Resize
from fedelta.seeds import stream
from fedelta.settings import Context, Settings
from fedelta.settings.paths import InFull, in_full_where_it_exists
from fedelta.tasks.base import Task
from fedelta.tasks.classification import Classification

if TYPE_CHECKING:
    from datasets import Dataset


def _in_full(source: str) -> str:
    return source if source == EMBEDDED else in_full_where_it_exists(source)


Place = Annotated[str, InFull(_in_full)]


class DataSource(Settings):
    """Which data are learned from: section `[data]`.

    Args:
        source: `digits` (scikit-learn's, embedded); a folder of images or of recordings (WAV, FLAC, OGG, MP3) with
            one sub-folder for each class, or with such folders below `train/` and `test/`; a Parquet, CSV, JSON
            or JSON Lines file, or a folder of them; else the name of a data set on the hub.
        test_source: where the test set is, if not in `source`.
        subset: configuration of a data set on the hub.
        label_column: holds what is predicted: of a classification an integer, a text or a class label, of a
            regression a number with a decimal point.
        image_column: holds images: encoded, as arrays (integers 0..255, floats 0..1, or numbers whose own range is
            found over the training data), or as paths of files from the working directory.
        text_column: holds texts; of the three columns of inputs at most one is given.
        audio_column: holds recordings: encoded, or as paths of files from the working directory.
        client_column: holds the id of the client that a row comes from.
        file_pattern: what the names of the files in a folder say, without their ending, such as
            `{label}_{client}_{index}`. `label` stands for the sub-folder, `client` is the client of the file (and
            `client_column` need not be set), fields of other names are not used. With it, CSV and JSON files in the
            folder are passed over.
        test_files: the files of a folder that are the test set, such as `*_[0-4].wav`, or `noisy/*` for those in
            folders of that name; the others are learned from.
        audio: how recordings become spectrograms.
        resize: how images get the model's size. "checkpoint": as the checkpoint's own image processor does it (its
            resizing, cropping and filter, in proportion where `model.image_size` is another). "stretch": resized to a
            square without regard to the aspect ratio, bilinear, which is also done where a checkpoint has no processor.
        train_split: the split to learn from.
        test_split: the split to evaluate on. Where there is none of the default name, `test_fraction` counts.
        test_fraction: share of the training rows that becomes the test set, the same share of each class.
        evaluate_on: "validation" takes `validation_fraction` of each client's rows out of its training, once the rows
            are divided as ever, and measures on them; the test set is not looked at (see validation.py).
        validation_fraction: share of a client's rows, rounded to the nearest; each client keeps at least one.
        max_length: most tokens of a text; longer ones are cut.
        max_train_examples: learn from no more rows than this, drawn in equal shares of each class.
        max_test_examples: evaluate on no more rows than this, drawn likewise.
        max_memory_mib: images are kept decoded, and recordings as spectrograms, up to this many MiB, per training
            and test set.
    """

    source: Place
    test_source: Place | None = None
    subset: str | None = None
    # None: found from the features (see columns.py); an ambiguity is an error.
    label_column: str | None = None
    image_column: str | None = None
    text_column: str | None = None
    audio_column: str | None = None
    client_column: str | None = None
    file_pattern: str | None = None
    test_files: str | None = None
    audio: AudioSettings = AudioSettings()
    resize: Resize = "checkpoint"  # what the checkpoint's weights have seen
    train_split: str = "train"  # the hub's usual names
    test_split: str = "test"
    test_fraction: float = Field(default=0.2, gt=0, lt=1)  # 1,437 of the 1,797 digits remain for training
    evaluate_on: Literal["test", "validation"] = "test"
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)  # as `test_fraction`
    max_length: int = Field(default=128, ge=1)  # the text classification example of transformers
    max_train_examples: int | None = Field(default=None, ge=2)  # all
    max_test_examples: int | None = Field(default=None, ge=1)  # all
    max_memory_mib: int = Field(default=2048, ge=0)  # a quarter of a small machine's 8 GiB

    @field_validator("file_pattern")
    @classmethod
    def _readable(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            expression(pattern)
        return pattern

    @model_validator(mode="after")
    def _one_of_each(self) -> DataSource:
        tests = {"test_files": self.test_files, "test_source": self.test_source}
        for values in ({f"{name}_column": column for name, column in self._input_columns.items()}, tests):
            given = [name for name, value in values.items() if value is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} are both set, expected one of them: remove the other")
        return self

    def problems(self, context: Context) -> list[str]:
        """Paths at which nothing is; what may be the name of a data set on the hub is no problem. Reads nothing.

        >>> DataSource(source="digits", test_source="/absent/test.csv").problems(Context({}))
        ["`data.test_source`: '/absent/test.csv' does not exist (looked in /absent)"]
        """
        named = {"source": self.source, "test_source": self.test_source}
        problems = {key: None if value is None else missing_path(value) for key, value in named.items()}
        return [f"`data.{key}`: {problem}" for key, problem in problems.items() if problem is not None]

    @property
    def wanted(self) -> Wanted:
        """The columns that are named."""
        inputs = {name: column for name, column in self._input_columns.items() if column is not None}
        return Wanted(self.label_column, self.client, inputs)

    @property
    def _input_columns(self) -> dict[str, str | None]:
        return {"image": self.image_column, "text": self.text_column, "audio": self.audio_column}

    @property
    def client(self) -> str | None:
        """The column of client ids: the one that is named, else that of a file pattern."""
        by_name = CLIENT if CLIENT in Naming(self.file_pattern).fields else None
        return self.client_column or by_name


@dataclass(frozen=True)
class RawData:
    """Rows as they were read, before any model is known.

    Args:
        source: what was read.
        train: training rows, numbered as in the split they were read from.
        test: test rows likewise; those held out have their number among the training rows.
        class_names: one name per class, in label order; nothing where the task has no classes.
        strata_names: one name per kind of row (`Targets.strata`).
        columns: which column is what.
    """

    source: DataSource
    train: Rows
    test: Rows
    class_names: tuple[str, ...]
    strata_names: tuple[str, ...]
    columns: Columns

    @property
    def modality(self) -> type[Modality]:
        """Whether the inputs are images, texts or recordings."""
        return self.columns.modality

    @property
    def preparation(self) -> Preparation:
        """What section `[data]` says of the way from such examples to inputs."""
        said = Preparation(max_length=self.source.max_length, audio=self.source.audio, resize=self.source.resize)
        return said.only(self.modality.settings)

    def client_ids(self, dataset: Dataset) -> list[object] | None:
        """The client of each row, class labels by their names; None where `dataset` does not say."""
        column = self.columns.client
        if column is None or column not in dataset.column_names:
            return None
        return readable(dataset, column)

    def without_test_rows_of(self, ids: Set[object]) -> RawData:
        """The same without the test rows of these clients; as it is where the test set does not say whose they are.

        Raises:
            DataError: none would be left.
        """
        found = self.client_ids(self.test.dataset) if ids else None
        names = set(map(str, ids))  # as `Clients` compares them: one file may hold numbers, the other their texts
        if found is None or not (of_them := [str(each) in names for each in found]) or not any(of_them):
            return self
        if all(of_them):
            raise DataError(
                f"every row of the test set belongs to a client that is held out: {listed(sorted(map(str, ids)))}",
                hint="hold out others, or give a test set of its own with `data.test_source`.",
            )
        return replace(self, test=self.test.select((~torch.tensor(of_them)).nonzero()[:, 0]))


def read(source: DataSource, *, seed: int, task: Task = Classification()) -> RawData:  # noqa: B008 a frozen value
    """Training and test set of `source`.

    Args:
        source: section `[data]`.
        seed: of the run; decides which rows become test rows where the data have no test split, and which
            remain where their number is limited.
        task: what is predicted.

    Raises:
        DataError: the data are missing, unreadable, or lack what is needed; names every problem.
    """
    origin = f"data source {source.source!r}"
    train, test = _load(source, origin)
    columns = find_columns(train, source.wanted, task, origin=origin)
    lacking = [] if test is None else missing_columns(test, columns)
    test_column = None if test is None or lacking else target_column(test, columns.label, "test set")
    targets = task.targets(target_column(train, columns.label, "training set"), test_column)
    refuse(origin, [*targets.problems, *lacking])
    learned = Rows(train, targets.train, torch.arange(len(train)))
    if test is None or targets.test is None:
        learned, held_out = hold_out(learned, source.test_fraction, stream(seed, "data", "test"))
    else:
        held_out = Rows(test, targets.test, torch.arange(len(test)))
    learned = limit(learned, source.max_train_examples, stream(seed, "data", "train subset"))
    held_out = limit(held_out, source.max_test_examples, stream(seed, "data", "test subset"))
    return RawData(
        source=source,
        train=learned,
        test=held_out,
        class_names=targets.class_names,
        strata_names=targets.strata_names,
        columns=columns,
    )


def _load(source: DataSource, origin: str) -> tuple[Dataset, Dataset | None]:
    """The training split, and the test split where there is one."""
    naming = Naming(source.file_pattern, source.test_files, source.test_split)
    splits = load_splits(source.source, source.subset, source.train_split, naming)
    problems = []
    if source.train_split not in splits:
        problems.append(f"no split {source.train_split!r} (`data.train_split`), found {listed(sorted(splits))}")
    elif len(splits[source.train_split]) < 2:
        problems.append(f"the training set has {len(splits[source.train_split])} rows, expected 2 or more")
    test = splits.get(source.test_split)
    default = DataSource.model_fields["test_split"].default
    if source.test_source is not None:
        others = load_splits(source.test_source, source.subset, source.test_split, naming)
        # Table files without splits of their own are called "train" by `datasets`.
        test = others.get(source.test_split, next(iter(others.values())) if len(others) == 1 else None)
        if test is None:
            found = listed(sorted(others))
            problems.append(f"no split {source.test_split!r} in `data.test_source`, found {found}")
    elif test is None and source.test_split != default:
        problems.append(f"no split {source.test_split!r} (`data.test_split`), found {listed(sorted(splits))}")
    if test is not None and len(test) == 0:
        problems.append("the test set has no rows, expected 1 or more")
    refuse(origin, problems)
    return splits[source.train_split], test
