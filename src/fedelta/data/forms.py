"""Other forms of data in Python as those that `data/objects.py` reads: pandas frames, lists of rows, columns in lists.

Rows that hold examples (texts, images) instead of numbers become Hugging Face data sets, which the processor of a model
reads.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from fedelta.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pandas as pd

# Any, in this file: rows of other libraries' data sets hold any type.
_INPUTS = {True: "image", False: "text"}  # the column of the first value of rows without names


def is_hugging_face(rows: object) -> TypeGuard[datasets.Dataset]:
    """Whether `rows` are a Hugging Face data set with random access; does not import their library."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(rows, library.Dataset)


def is_frame(rows: object) -> TypeGuard[pd.DataFrame]:
    """Whether `rows` are a pandas frame; does not import pandas."""
    library = sys.modules.get("pandas")
    return library is not None and isinstance(rows, library.DataFrame)


def is_column(value: object) -> bool:
    """Whether `value` is one column: a tensor, an array, a series, or a list of numbers, texts or images."""
    library = sys.modules.get("pandas")
    if isinstance(value, Tensor | np.ndarray) or (library is not None and isinstance(value, library.Series)):
        return True
    return isinstance(value, list) and bool(value) and (isinstance(value[0], Number) or _is_example(value[0]))


def are_rows(rows: object) -> TypeGuard[list[Any]]:
    """Whether `rows` are a list of rows: tuples, lists or dictionaries."""
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], tuple | list | Mapping)


def columns_of(rows: object) -> object:
    """`rows`, with tensors and arrays for their columns, if they are a frame, a dictionary or a tuple of columns."""
    if is_frame(rows):
        return {str(name): rows[name].to_numpy() for name in rows.columns}
    if isinstance(rows, Mapping):
        return {name: _array(column) for name, column in rows.items()}
    if isinstance(rows, tuple | list) and rows and all(is_column(column) or is_frame(column) for column in rows):
        return tuple(map(_array, rows))
    return rows


def holds_examples(rows: Any) -> bool:
    """Whether rows hold texts or images, of which a model's processor makes inputs."""
    if is_frame(rows):
        return any(_is_example(rows[name].iloc[0]) for name in rows.columns if len(rows))
    if is_hugging_face(rows):
        return True
    if isinstance(rows, Mapping):
        return any(isinstance(column, list) and bool(column) and _is_example(column[0]) for column in rows.values())
    if isinstance(rows, tuple | list) and rows and is_column(rows[0]):
        return isinstance(rows[0], list) and _is_example(rows[0][0])
    if (are_rows(rows) or _is_data_set(rows)) and _length(rows):
        first = rows[0]
        values = first.values() if isinstance(first, Mapping) else first if isinstance(first, tuple | list) else []
        return any(map(_is_example, values))
    return False


def as_data_set(rows: Any, what: str) -> Any:
    """Rows that hold texts or images as a Hugging Face data set; of any other form, as they are.

    Args:
        rows: in any form; without names, the first value of a row is the example, and the second its label.
        what: their name in messages.

    Raises:
        DataError: rows differ in form.
    """
    if is_hugging_face(rows) or not holds_examples(rows):
        return rows
    from datasets import Dataset as HuggingFace

    try:
        if is_frame(rows):
            return HuggingFace.from_pandas(rows, preserve_index=False)
        if isinstance(rows, Mapping):
            return HuggingFace.from_dict(dict(rows))
        if isinstance(rows, tuple | list) and is_column(rows[0]):
            return HuggingFace.from_dict(_named([list(column) for column in rows]))
        listed = [rows[row] for row in range(len(rows))]
        if isinstance(listed[0], Mapping):
            return HuggingFace.from_list([dict(row) for row in listed])
        return HuggingFace.from_dict(_named(list(zip(*listed, strict=True))))
    # Arrow raises errors of many types for values that do not fit together.
    except Exception as error:
        raise DataError(f"{what} make no table: {type(error).__name__}: {error}") from error


def _named(columns: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    names = [_INPUTS[_is_image(columns[0][0])], "label", *map(str, range(2, len(columns)))]
    return {name: list(map(_number, column)) for name, column in zip(names, columns, strict=False)}


def _number(value: Any) -> Any:
    """A tensor or an array as a number, or as a list of them; anything else as it is."""
    if isinstance(value, Tensor):
        return value.tolist()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _array(column: Any) -> object:
    """A column of pandas, or in a list of numbers or texts, as an array."""
    if is_frame(column):
        return column.to_numpy(dtype=np.float32)
    if isinstance(column, Tensor | np.ndarray) or not is_column(column):
        return column
    if isinstance(column, list):
        return column if _is_image(column[0]) else np.asarray(column)
    return column.to_numpy()


def _is_example(value: object) -> bool:
    return isinstance(value, str) or _is_image(value)


def _is_image(value: object) -> bool:
    library = sys.modules.get("PIL.Image")
    return library is not None and isinstance(value, library.Image)


def _length(rows: Any) -> int:
    """0 if a data set does not know its length."""
    try:
        return len(rows)
    except (TypeError, NotImplementedError):
        return 0


def _is_data_set(rows: object) -> TypeGuard[Dataset[Any]]:
    return isinstance(rows, Dataset) and not isinstance(rows, IterableDataset)
