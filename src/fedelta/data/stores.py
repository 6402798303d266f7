"""Model inputs by row: images in memory, images decoded when asked for, tokenised texts.

Each class is an `Inputs` (see batches.py). What a store holds is as raw as memory allows, and a transform of
the model's side makes the inputs at every fetch.

Shapes: N rows, B rows of a batch, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedelta.data.images import ImageError, ImageShape, decode, measure
from fedelta.data.problems import listed, refuse
from fedelta.models.transforms import ImageTransform, TextTransform

if TYPE_CHECKING:
    from datasets import Dataset

    from fedelta.data.batches import Inputs

REPLACE = "remove or replace these files or rows; rows are counted from 0"


@dataclass(frozen=True)
class StoredImages:
    """Images in memory.

    Args:
        images: uint8 of shape [N, C, H, W].
        transform: of the model.
    """

    images: Tensor
    transform: ImageTransform

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """`pixel_values` of `rows` (int64, one axis)."""
        return self.transform(self.images[rows])


@dataclass(frozen=True)
class EncodedImages:
    """Images that are decoded at every fetch, for data sets larger than memory.

    Args:
        dataset: N rows.
        column: holds the images.
        shape: to which each is decoded.
        transform: of the model.
        row_numbers: int64 of shape [N], what messages call the rows.
    """

    dataset: Dataset
    column: str
    shape: ImageShape
    transform: ImageTransform
    row_numbers: Tensor

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """`pixel_values` of `rows` (int64, one axis).

        Raises:
            DataError: an image is damaged behind its header.
        """
        values = self.dataset.select(rows.tolist()).with_format("arrow")[:].column(self.column).to_pylist()
        decoded: list[Tensor] = []
        problems: list[str] = []
        for number, value in zip(self.row_numbers[rows].tolist(), values, strict=True):
            try:
                decoded.append(torch.from_numpy(decode(value, self.shape)))
            except ImageError as error:
                problems.append(described(number, value, error))
        refuse(f"column {self.column!r}", problems, hint=REPLACE)
        return self.transform(torch.stack(decoded))


@dataclass(frozen=True)
class StoredTexts:
    """Tokenised texts in memory.

    Args:
        token_ids: int32, the tokens of all texts one after the other.
        ends: int64 of shape [N], the place behind each text's last token.
        transform: of the model.
    """

    token_ids: Tensor
    ends: Tensor
    transform: TextTransform

    def __len__(self) -> int:
        return len(self.ends)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of `rows` (int64, one axis), padded to the longest of them."""
        ends = self.ends[rows].tolist()
        starts = self.ends[rows - 1].where(rows > 0, 0).tolist()
        return self.transform.collate([self.token_ids[a:b] for a, b in zip(starts, ends, strict=True)])


def image_inputs(
    dataset: Dataset,
    column: str,
    transform: ImageTransform,
    *,
    origin: str,
    max_memory_mib: int,
    row_numbers: Tensor | None = None,
) -> Inputs:
    """The images of a column, in memory where they fit.

    Images that all have one size no larger than the model's are kept at that size and resized at every fetch;
    otherwise each is resized to the model's size when it is read.

    Args:
        dataset: N rows.
        column: holds the images, in any form that `images.decode` takes.
        transform: of the model.
        origin: names the data set in messages.
        max_memory_mib: above this many MiB of decoded pixels, images are decoded at every fetch instead.
        row_numbers: int64 of shape [N], what messages call the rows; None is 0..N-1.

    Raises:
        DataError: rows that hold no image, all in one message; an image that is damaged behind its header is
            found here only if it is kept in memory.
    """
    numbers = torch.arange(len(dataset)) if row_numbers is None else row_numbers
    shapes, problems = _headers(dataset, column, numbers)
    shape = _common_shape(shapes, transform.image_size)
    num_bytes = len(dataset) * shape.channels * shape.height * shape.width
    if not shapes or num_bytes > max_memory_mib * 2**20:
        refuse(origin, list(problems.values()), hint=REPLACE)
        return EncodedImages(dataset.select_columns([column]), column, shape, transform, numbers)
    images = torch.empty((len(dataset), shape.channels, shape.height, shape.width), dtype=torch.uint8)
    for row, value in undecoded(dataset, column):
        if row in problems:
            continue
        try:
            images[row] = torch.from_numpy(decode(value, shape))
        except ImageError as error:
            problems[row] = described(int(numbers[row]), value, error)
    refuse(origin, [problem for _, problem in sorted(problems.items())], hint=REPLACE)
    return StoredImages(images, transform)


def text_inputs(
    dataset: Dataset, column: str, transform: TextTransform, *, origin: str, row_numbers: Tensor | None = None
) -> Inputs:
    """The texts of a column, tokenised once.

    Args:
        dataset: N rows.
        column: holds the texts.
        transform: of the model.
        origin: names the data set in messages.
        row_numbers: int64 of shape [N], what messages call the rows; None is 0..N-1.

    Raises:
        DataError: rows without text or without a single token.
    """
    chunks: list[Tensor] = []
    lengths: list[int] = []
    for batch in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1024):
        texts = batch.column(0).to_pylist()
        # A missing text has no tokens and is named below.
        encoded = transform.encode([text or "" for text in texts])
        encoded = [[] if text is None else ids for text, ids in zip(texts, encoded, strict=True)]
        lengths += [len(ids) for ids in encoded]
        chunks.append(torch.tensor([token for ids in encoded for token in ids], dtype=torch.int32))
    numbers = range(len(lengths)) if row_numbers is None else row_numbers.tolist()
    empty = [number for number, length in zip(numbers, lengths, strict=True) if length == 0]
    if empty:
        refuse(
            origin,
            [f"{len(empty)} rows of column {column!r} hold no text: rows {listed(empty)}"],
            hint=REPLACE,
        )
    return StoredTexts(torch.cat(chunks), torch.tensor(lengths).cumsum(0), transform)


def _headers(dataset: Dataset, column: str, numbers: Tensor) -> tuple[set[ImageShape], dict[int, str]]:
    """The shapes of the images, and row to problem where there is none."""
    shapes: set[ImageShape] = set()
    problems: dict[int, str] = {}
    for row, value in undecoded(dataset, column):
        try:
            shapes.add(measure(value))
        except ImageError as error:
            problems[row] = described(int(numbers[row]), value, error)
    return shapes, problems


def _common_shape(shapes: Set[ImageShape], image_size: int) -> ImageShape:
    """The shape in which to keep the images: their own if it is one and no larger than the model's."""
    channels = max((shape.channels for shape in shapes), default=1)
    sizes = {(shape.height, shape.width) for shape in shapes}
    height, width = sizes.pop() if len(sizes) == 1 else (image_size, image_size)
    if max(height, width) > image_size:
        height = width = image_size
    return ImageShape(channels, height, width)


def undecoded(dataset: Dataset, column: str) -> Iterator[tuple[int, Any]]:
    """Row and value of a column as it is stored; Any: whatever the file holds."""
    row = 0
    # Arrow format hands out the stored bytes; the default format would decode every image or recording a second time.
    for batch in dataset.select_columns([column]).with_format("arrow").iter(batch_size=256):
        for value in batch.column(0).to_pylist():
            yield row, value
            row += 1


def described(number: int, value: object, error: Exception) -> str:
    """A problem of the row that messages call `number`, with the file it came from."""
    path = value.get("path") if isinstance(value, dict) else None
    return f"row {number}{f' ({path})' if path else ''}: {error}"
