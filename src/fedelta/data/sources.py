"""Where the data come from: the `[data]` section, and reading it.

Two steps, because a model can only be built when the classes are known, and inputs only when the model is:

    raw = read(source, seed=seed, task=task)                # rows, targets, class names
    data = federate(raw, settings, modality, seed=seed)     # in federate.py: inputs, rows of each client
"""

from __future__ import annotations

import logging
from collections.abc import Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, field_validator, model_validator

from fedelta.data.columns import Columns, Wanted, find_columns, missing_columns, target_column
from fedelta.data.files import EMBEDDED, load_splits, missing_path
from fedelta.data.folders import Splits
from fedelta.data.naming import CLIENT, LABEL, SPLIT, Naming, expression, levels_in
from fedelta.data.split_names import chosen, kind_of
from fedelta.data.splits import Rows, hold_out, limit
from fedelta.data.values import Ids, read_ids
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


logger = logging.getLogger("fedelta")

Place = Annotated[str, InFull(_in_full)]


class DataSource(Settings):
    """Which data are learned from: section `[data]`.

    Args:
        source: `digits` (scikit-learn's, embedded); a folder of images or of recordings (WAV, FLAC, OGG, MP3) with
            one sub-folder for each class, or with such folders below `train/` and `test/` (see `folders`), or with a
            table `metadata.csv` or `.jsonl` whose column `file_name` says what is in which; a Parquet, CSV, JSON or
            JSON Lines file (a column `split` may tell training from test rows), or a folder of them; what
            `save_to_disk` of `datasets` has written; JSON of LEAF, whose users are the clients; else the name of a data
            set on the hub.
        test_source: where the test set is, if not in `source`.
        subset: configuration of a data set on the hub.
        label_column: holds what is predicted: of a classification an integer, a text or a class label, of a
            regression a number with a decimal point.
        image_column: holds images: encoded, as arrays (integers 0..255, floats 0..1, or numbers whose own range is
            found over the training data), or as paths of files from the folder of the table on.
        text_column: holds texts; of the three columns of inputs at most one is given.
        audio_column: holds recordings: encoded, or as paths of files from the folder of the table on.
        client_column: holds the id of the client that a row comes from.
        file_pattern: what the names of the files in a folder say, without their ending, such as
            `{label}_{client}_{index}`. `label` stands for the sub-folder, `client` is the client of the file (and
            `client_column` need not be set), fields of other names are not used. With it, CSV and JSON files in the
            folder are passed over.
        folders: what each level of folders is, from the top: `split`, `client`, `label`, or `*` for one that says
            nothing, such as `client/label` or `split/client/label`; folders below say nothing. `client` is the client
            of the file, as in `file_pattern`. Found out where there is one way only to read them.
        test_files: the files of a folder that are the test set, such as `*_[0-4].wav`, or `noisy/*` for those in
            folders of that name; the others are learned from.
        audio: how recordings become spectrograms.
        resize: how images get the model's size. "checkpoint": as the checkpoint's own image processor does it (its
            resizing, cropping and filter, in proportion where `model.image_size` is another). "stretch": resized to a
            square without regard to the aspect ratio, bilinear, which is also done where a checkpoint has no processor.
        train_split: the split to learn from; `Train` and `training` mean the same, where there is none so called.
        test_split: the split to evaluate on, likewise. Where there is none of the default name, it is the validation
            set, and where there is none either, `test_fraction` counts.
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
    folders: str | None = None
    test_files: str | None = None
    audio: AudioSettings = AudioSettings()
    resize: Resize = "checkpoint"  # what the checkpoint's weights have seen
    train_split: str = "train"  # the hub's usual names
    test_split: str = "test"
    test_fraction: float = Field(default=0.2, gt=0, lt=1)  # 1,437 of the 1,797 digits remain for training
    evaluate_on: Literal["test", "validation"] = "test"
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)  # as `test_fraction`
    # The text classification example of transformers; no model reads a million tokens, but memory is asked for.
    max_length: int = Field(default=128, ge=1, le=1_000_000)
    max_train_examples: int | None = Field(default=None, ge=2)  # all
    max_test_examples: int | None = Field(default=None, ge=1)  # all
    max_memory_mib: int = Field(default=2048, ge=0)  # a quarter of a small machine's 8 GiB

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
        if twice := sorted(self.naming.fields & {CLIENT, LABEL} & set(self.naming.levels or ())):
            raise ValueError(f"file_pattern and folders both say {listed(twice)}, expected one of them")
        if self.test_files is not None and SPLIT in (self.naming.levels or ()):
            raise ValueError("test_files is set, and folders says 'split', expected one of them: remove the other")
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
    def naming(self) -> Naming:
        """What names of files, folders and splits say."""
        paths_in = tuple(each for each in (self.image_column, self.audio_column) if each is not None)
        return Naming(
            self.file_pattern, self.test_files, self.train_split, self.test_split, self.folders, paths_in=paths_in
        )

    @property
    def client(self) -> str | None:
        """The column of client ids: the one that is named, else that of a file pattern or of folders."""
        return self.client_column or (CLIENT if self.naming.says_client else None)

    @property
    def may_name_clients(self) -> bool:
        """Whether only reading them shows if the data themselves say whose a row is: LEAF's do."""
        path = Path(self.source)
        return path.suffix.lower() == ".json" or any(True for _ in path.rglob("*.json"))


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
        at_a_glance: whether examples are read when they are asked for, and not all at once (see `glance.py`).
    """

    source: DataSource
    train: Rows
    test: Rows
    class_names: tuple[str, ...]
    strata_names: tuple[str, ...]
    columns: Columns
    at_a_glance: bool = False

    @property
    def modality(self) -> type[Modality]:
        """Whether the inputs are images, texts or recordings."""
        return self.columns.modality

    @property
    def preparation(self) -> Preparation:
        """What section `[data]` says of the way from such examples to inputs."""
        said = Preparation(max_length=self.source.max_length, audio=self.source.audio, resize=self.source.resize)
        return said.only(self.modality.settings)

    @cached_property
    def train_ids(self) -> Ids | None:
        """The client of each training row; None where the data do not say.

        Raises:
            DataError: some values can be no ids.
        """
        return self._ids(self.train, "training set")

    @cached_property
    def test_ids(self) -> Ids | None:
        """The same of the test rows."""
        return self._ids(self.test, "test set")

    def _ids(self, rows: Rows, what: str) -> Ids | None:
        column = self.columns.client
        if column is None or column not in rows.dataset.column_names:
            return None
        return read_ids(rows.dataset, column, what, rows.numbers)

    def without_test_rows_of(self, ids: Set[object]) -> RawData:
        """The same without the test rows of these clients; as it is where the test set does not say whose they are.

        Raises:
            DataError: none would be left.
        """
        found = self.test_ids if ids else None
        names = set(map(str, ids))  # as `Clients` compares them: one file may hold numbers, the other their texts
        if found is None or not any(of_them := [str(each) in names for each in found.names]):
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
    train, test, splits = _load(source, origin)
    wanted = source.wanted if source.client is not None else replace(source.wanted, client=splits.client)
    columns = find_columns(train, wanted, task, origin=origin)
    lacking = [] if test is None else missing_columns(test, columns)
    test_column = None if test is None or lacking else target_column(test, columns.label, "test set")
    targets = task.targets(target_column(train, columns.label, "training set"), test_column)
    refuse(origin, [*targets.problems, *lacking])
    for note in (*splits.notes, *targets.notes):
        logger.warning("%s", note)
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


def _load(source: DataSource, origin: str) -> tuple[Dataset, Dataset | None, Splits]:
    """The training split, the test split where there is one, and all that was read."""
    found = load_splits(source.source, source.subset, source.naming)
    splits = found.rows
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
    used = {train, source.test_split, *([] if test is None else chosen(splits, source.test_split))}
    if unused := [name for name in splits if name not in used and kind_of(name) != "validation"]:
        notes.append(f"splits that are not used: {listed(unused)}; `data.train_split` and `data.test_split` choose")
    return splits[train or ""], test, replace(found, notes=(*found.notes, *notes))


def _test_source(source: DataSource, place: str, problems: list[str]) -> Dataset | None:
    naming = replace(source.naming, test_files=None, train_split=source.test_split)
    others = load_splits(place, source.subset, naming).rows
    name = _split(others, source.test_split, "data.test_split", problems)
    if name is None and len(others) > 1:
        problems.append(f"no split {source.test_split!r} in `data.test_source`, found {listed(sorted(others))}")
    # The only part of a file, whatever it is called.
    return others[name] if name is not None else next(iter(others.values())) if len(others) == 1 else None


def _test_split(
    splits: dict[str, Dataset], source: DataSource, problems: list[str], notes: list[str]
) -> Dataset | None:
    """The test set among `splits`; None where rows have to be held out."""
    name = _split(splits, source.test_split, "data.test_split", problems)
    if name is not None:
        return splits[name]
    if source.test_split != DataSource.model_fields["test_split"].default:
        problems.append(f"no split {source.test_split!r} (`data.test_split`), found {listed(sorted(splits))}")
        return None
    name = _split(splits, "validation", "data.test_split", problems)
    if name is None or kind_of(source.train_split) == "validation":
        return None
    notes.append(f"there is no test set: {name!r} is measured on; set `data.test_split` to say otherwise")
    return splits[name]


def _split(splits: dict[str, Dataset], wanted: str, key: str, problems: list[str]) -> str | None:
    """The split that `wanted` means; None for none, or where it may mean several."""
    found = chosen(splits, wanted)
    if len(found) > 1:
        problems.append(f"{listed(found)} are all names for {wanted!r}, expected one: set `{key}` to one of them")
    return found[0] if len(found) == 1 else None
