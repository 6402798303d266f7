"""Hugging Face data sets that the caller gives as objects, in the form in which a data set is read from files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedelta.data.clients import Name
from fedelta.data.forms import is_hugging_face
from fedelta.data.given import Table
from fedelta.data.objects import in_order
from fedelta.errors import DataError, listed

if TYPE_CHECKING:
    from datasets import Dataset


def labelled_by_client(rows: Any, column: str | None, argument: str) -> Dataset:
    """One data set; of several by client, with the client of each row in a column.

    Args:
        rows: a data set, or client name to data set; Any: of any other type, for the message.
        column: its name; None for "client".
        argument: what the caller calls them, for messages.

    Raises:
        DataError: they are something else, or have different columns.
    """
    from datasets import concatenate_datasets

    if not isinstance(rows, Mapping):
        return _checked(rows, f"`{argument}`")
    if not rows:
        raise DataError(f"`{argument}` is an empty dictionary, expected client name to data.")
    name, parts = column or "client", []
    for client in in_order(rows):
        part = _checked(rows[client], f"`{argument}[{client!r}]`")
        part = part.remove_columns([name]) if name in part.column_names else part
        parts.append(part.add_column(name, [client] * len(part)))
    try:
        return concatenate_datasets(parts)
    except (ValueError, TypeError) as error:
        raise DataError(f"the data sets of `{argument}` have different columns: {error}") from error


def ids_of(rows: object, table: Table, column: str) -> list[Name]:
    """The client of each row, from a column of a Hugging Face data set, which may hold texts, or of its table.

    Raises:
        DataError: there is no such column.
    """
    names = rows.column_names if is_hugging_face(rows) else list(table.names)
    if column not in names:
        raise DataError(f"the training data have no column {column!r} (`data.client_column`), found {listed(names)}.")
    if is_hugging_face(rows):
        return list(rows[column])
    ids: list[Name] = table.texts[column].tolist() if column in table.texts else table.column(column).tolist()
    return ids


def _checked(rows: object, what: str) -> Dataset:
    if not is_hugging_face(rows):
        raise DataError(f"{what} is {type(rows).__name__}, expected a `datasets.Dataset` as for the other clients.")
    if not len(rows):
        raise DataError(f"{what} has no rows, expected 1 or more.")
    return rows
