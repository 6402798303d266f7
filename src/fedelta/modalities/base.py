"""What a modality is: all that fedelta has to know of images, of texts, or of recordings, in one object.

The class tells what is known before there is a model: words for messages, and which columns hold such examples. An
object of it belongs to one model and turns examples into that model's inputs; `Backbone.modality` is one.

Values on their way are *examples* (an encoded image, a text, a recording, as a column or a user has it), then *raw*
rows (what is kept of an example: pixels, token ids, a spectrogram), then *inputs* (keyword arguments of the model).
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

# What a column of a data set holds, as its features tell: `array` stands for numbers in two or more dimensions.
FeatureKind = Literal["image", "audio", "bytes", "array", "text"]


class ExampleError(ValueError):
    """A value is no example of its modality; the text says why. Callers add where it was found."""


class Certainty(IntEnum):
    """How surely a column of some kind holds examples; of several columns the surest count."""

    SURE = 0
    LIKELY = 1
    FALLBACK = 2


@dataclass(frozen=True)
class ColumnRule:
    """Which columns of a data set hold examples of a modality.

    Args:
        kinds: kind of a column to how surely it holds them.
        is_strict: a column that the configuration names has to be of one of these kinds as well; otherwise its values
            are looked at one by one.
    """

    kinds: Mapping[FeatureKind, Certainty]
    is_strict: bool = False


@dataclass(frozen=True)
class ModelFiles:
    """What is known of a model when its modality is made.

    Args:
        config: of transformers.
        place: directory or hub name with the files beside `config.json`; None where there are none.
        image_size: side of the square that the model takes, in pixels; of no use where it takes none.
        num_positions: most tokens that the model has positions for; None where nothing bounds them.
    """

    config: PretrainedConfig
    place: str | None
    image_size: int
    num_positions: int | None = None

    @property
    def num_channels(self) -> int:
        """Of the images that the model takes."""
        return int(getattr(vision_part(self.config), "num_channels", 3))


def vision_part(config: PretrainedConfig) -> PretrainedConfig:
    """What a configuration says of images: of one composed of several, such as CLIP's, the part for them."""
    part: PretrainedConfig = getattr(config, "vision_config", config)
    return part


class Column(Protocol):
    """The examples of one column of a data set, as they are stored: bytes, paths, arrays, texts."""

    @property
    def name(self) -> str:
        """Of the column."""

    @property
    def origin(self) -> str:
        """Names the data set in messages."""

    @property
    def numbers(self) -> Tensor:
        """What messages call the rows, int64 of shape [N]."""

    def __len__(self) -> int:
        """Number of rows."""

    def chunks(self) -> Iterator[list[Any]]:
        """All values in order, some hundreds at a time; Any: whatever the file holds."""

    def take(self, rows: Tensor) -> list[Any]:
        """The values of `rows` (int64, one axis); Any: whatever the file holds."""


class Inputs(Protocol):
    """Model inputs by row."""

    def __len__(self) -> int:
        """Number of rows."""

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """Keyword arguments of the model for `rows` (int64, one axis); every tensor has the batch first."""


class Modality(Protocol):
    """What an example is, and how it becomes the inputs of one model.

    Class attributes:
        name: `[data]` has a key `<name>_column`, and `<name>` where there are settings.
        singular, plural: in words.
        columns: which columns of a data set hold such examples.
        suffixes: of files that hold one example each, lower case with the dot; empty where there are none.
        is_augmented: whether `[augmentation]` applies.
        settings: keys of `[data]` that say how such examples become inputs; fields of `Preparation`.
        card_note: for the model card; empty for nothing to say.
    """

    name: ClassVar[str]
    singular: ClassVar[str]
    plural: ClassVar[str]
    columns: ClassVar[ColumnRule]
    suffixes: ClassVar[frozenset[str]]
    is_augmented: ClassVar[bool]
    settings: ClassVar[frozenset[str]]
    card_note: ClassVar[str]

    @classmethod
    def for_model(cls, model: ModelFiles) -> Self:
        """As a model was trained to take them.

        Raises:
            ModelError: a file is missing, or does not belong to the model.
        """

    def prepared(self, preparation: Preparation) -> Modality:
        """The same with what is said in `preparation`; another modality where the model takes that one as well."""

    @property
    def preparation(self) -> Preparation:
        """What has to be said to `prepared` to get this one from the model's own."""

    @property
    def description(self) -> Mapping[str, object]:
        """How examples become inputs, for those who run an exported model: JSON values, `kind` first."""

    @property
    def dynamic_axes(self) -> Mapping[int, str]:
        """Axes of the inputs that may have any length, and their names."""

    @property
    def black(self) -> tuple[float, ...]:
        """Value in the inputs of what augmentation adds at an edge: one for all channels, or one for each."""

    def transform(self, raw: Any) -> dict[str, Tensor]:
        """Inputs for raw rows; Any: what is kept of an example differs between modalities."""

    def store(self, column: Column, max_memory_mib: int) -> Inputs:
        """The examples of a column by row, raw and in memory where they fit.

        Args:
            column: of a data set.
            max_memory_mib: above this many MiB of raw rows, examples are decoded at every fetch instead.

        Raises:
            DataError: rows that hold no example, all in one message; one that is damaged behind its header is found
                here only if it is kept in memory.
        """

    def examples(self, examples: Sequence[Example], batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Inputs of `batch_size` examples at a time, in order, by the code that reads training data.

        Raises:
            DataError: something is no example; names all of them. Raised at the call, not while iterating.
        """

    def export_inputs(self, num: int, length: int, generator: Generator) -> dict[str, Tensor]:
        """Random inputs of `num` examples; those that have a length have `length`, one less, and so on."""

    def costliest(self) -> dict[str, Tensor]:
        """Inputs of one example that costs as much as any."""
