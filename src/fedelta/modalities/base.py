"""The modality protocol: everything that fedelta knows of images, of texts or of recordings, in one object.

The class holds what does not depend on a model: names for messages, and which columns hold such examples. An instance
belongs to one model and turns examples into its inputs; `Backbone.modality` is one.

Values pass through three forms: *examples* (an encoded image, a text or a recording, as a column or a user has it),
*raw* rows (the stored form: pixels, token ids, a spectrogram) and *inputs* (keyword arguments of the model).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from torch import Generator, Tensor

from fedelta.modalities.settings import Preparation

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PretrainedConfig

    Example = str | Path | Image | Tensor | tuple[Tensor, int]

# The content of a column, according to the features of its data set; `array`: numbers in two or more dimensions,
# `words`: lists of texts.
FeatureKind = Literal["image", "audio", "bytes", "array", "text", "words"]


class ExampleError(ValueError):
    """A value is not an example of its modality. The message gives the reason; callers add the row or file."""


class Certainty(IntEnum):
    """How certainly a column of some kind holds examples; among several columns the most certain are taken."""

    SURE = 0
    LIKELY = 1
    FALLBACK = 2


@dataclass(frozen=True)
class ColumnRule:
    """Which columns of a data set hold examples of a modality.

    Args:
        kinds: kind of column to the certainty that it holds examples.
        is_strict: whether a column that the configuration names must be of one of these kinds, too; if not, each of
            its values is checked.
    """

    kinds: Mapping[FeatureKind, Certainty]
    is_strict: bool = False


@dataclass(frozen=True)
class ModelFiles:
    """The parts of a model from which its modality is made.

    Args:
        config: the configuration of transformers.
        place: directory or hub name that holds `config.json` and other files; None if there are no files.
        image_size: side of the model's square input in pixels; ignored if the model takes no images.
        is_size_known: whether `image_size` comes from the configuration or the user; if not, the size in the
            checkpoint's `preprocessor_config.json` takes precedence.
        num_positions: maximum number of tokens; None if the model sets no limit.
    """

    config: PretrainedConfig
    place: str | None
    image_size: int
    is_size_known: bool = True
    num_positions: int | None = None

    @property
    def num_channels(self) -> int:
        """Number of channels of the model's input images."""
        return int(getattr(vision_part(self.config), "num_channels", 3))


def vision_part(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a configuration that describes images, for composite models such as CLIP; else all of it."""
    part: PretrainedConfig = getattr(config, "vision_config", config)
    return part


class Column(Protocol):
    """One column of a data set, with its values in stored form: bytes, paths, arrays, texts."""

    @property
    def name(self) -> str:
        """Name of the column."""

    @property
    def origin(self) -> str:
        """Name of the data set in messages."""

    @property
    def numbers(self) -> Tensor:
        """Row numbers to show in messages, int64 of shape [N]."""

    def __len__(self) -> int:
        """Number of rows."""

    def chunks(self) -> Iterator[list[Any]]:
        """All values in order, some hundreds at a time; Any: any type that a file can hold."""

    def take(self, rows: Tensor) -> list[Any]:
        """The values of `rows` (int64, one axis); Any: any type that a file can hold."""


class Inputs(Protocol):
    """Model inputs by row."""

    def __len__(self) -> int:
        """Number of rows."""

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """Keyword arguments of the model for `rows` (int64, one axis); every tensor has the batch first."""


class Modality(Protocol):
    """A kind of example, and how it becomes the inputs of one model.

    Class attributes:
        name: `[data]` has a key `<name>_column`, and a key `<name>` if there are settings.
        singular, plural: words for one example and for several.
        columns: which columns of a data set hold such examples.
        suffixes: of files that hold one example each, in lower case with the dot; empty if there are no such files.
        is_augmented: whether `[augmentation]` applies.
        settings: keys of `[data]` that control how examples become inputs; fields of `Preparation`.
    """

    name: ClassVar[str]
    singular: ClassVar[str]
    plural: ClassVar[str]
    columns: ClassVar[ColumnRule]
    suffixes: ClassVar[frozenset[str]]
    is_augmented: ClassVar[bool]
    settings: ClassVar[frozenset[str]]

    @classmethod
    def for_model(cls, model: ModelFiles) -> Self:
        """The modality with the preparation that the model was trained with.

        Raises:
            ModelError: a file is missing, or does not belong to the model.
        """

    @classmethod
    def card_note(cls, preparation: Preparation) -> str:
        """How examples were prepared, for the model card; empty if there is nothing to add."""

    def prepared(self, preparation: Preparation) -> Modality:
        """A copy that follows `preparation`; another modality if that is asked for and the model can take it.

        Raises:
            ModelError: this model does not support the preparation.
        """

    def fitted(self, column: Column) -> Self:
        """A copy with the properties that depend on the training examples; `self` if they are already set.

        Raises:
            DataError: the examples give no usable values.
        """

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes to the user on how examples become inputs."""

    @property
    def preparation(self) -> Preparation:
        """The preparation with which `prepared` recreates this modality from the model's default."""

    @property
    def description(self) -> Mapping[str, object]:
        """How examples become inputs, for users of an exported model: JSON values, `kind` first."""

    @property
    def dynamic_axes(self) -> Mapping[int, str]:
        """Axes of the inputs that may have any length, and their names."""

    @property
    def black(self) -> tuple[float, ...]:
        """The input value that augmentation fills edges with: one for all channels, or one per channel."""

    def transform(self, raw: Any) -> dict[str, Tensor]:
        """Model inputs of raw rows; Any: the raw form differs between modalities."""

    def store(self, column: Column, max_memory_mib: int) -> Inputs:
        """The examples of a column, in raw form and in memory if they fit.

        Args:
            column: of a data set.
            max_memory_mib: if raw rows take more MiB than this, examples are decoded at every fetch instead.

        Raises:
            DataError: rows that hold no example, all in one message. Damage behind the header of an example is found
                here only if the examples are kept in memory.
        """

    def examples(self, examples: Sequence[Example], batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Inputs in batches of `batch_size` examples, in order, made by the code that reads training data.

        Raises:
            DataError: names every value that is not an example. Raised at the call, not while iterating.
        """

    def export_inputs(self, num: int, length: int, generator: Generator) -> dict[str, Tensor]:
        """Random inputs of `num` examples; where examples have lengths, these are `length`, `length` - 1, and so on."""

    def costliest(self) -> dict[str, Tensor]:
        """Inputs of one example with the highest possible cost."""
