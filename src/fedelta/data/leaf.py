"""Reads LEAF's files: JSON with the rows of each user (Caldas et al. 2018, arXiv 1812.01097).

    {"users": ["f0", ...], "num_samples": [2, ...], "user_data": {"f0": {"x": [...], "y": [...]}, ...}}

Users become clients. The shape of `x` shows what it is: 784 numbers (or any square number) are an image of FEMNIST, a
text is one of Shakespeare or the file name of an image of CelebA, and a list of texts is a tweet of Sentiment140, whose
fifth element is the message (`models/sent140/stacked_lstm.py` in LEAF).
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedelta.data.folders import Splits
from fedelta.data.naming import CLIENT, LABEL
from fedelta.errors import DataError, listed, refuse
from fedelta.modalities.table import MODALITIES

if TYPE_CHECKING:
    from datasets import Dataset

_TWEET = 4  # position of the message in a row of Sentiment140


def is_leaf(path: Path) -> bool:
    """Whether a file has the keys of LEAF's format."""
    if path.suffix.lower() != ".json" or not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content[:1] == b"{" and content.find(b'"user_data"') >= 0 and content.find(b'"users"') >= 0


def read_leaf(splits: dict[str, list[Path]]) -> Splits:
    """The rows of all users, in the order of the files.

    Raises:
        DataError: a file is not JSON, or does not have this format.
    """
    return Splits({split: _dataset(files) for split, files in splits.items()}, client=CLIENT)


def _dataset(files: Sequence[Path]) -> Dataset:
    from datasets import Dataset, Image, concatenate_datasets

    parts = []
    for path in files:
        clients, inputs, labels = _rows(path)
        name, values = _inputs(path, inputs)
        part = Dataset.from_dict({name: values, LABEL: labels, CLIENT: clients})
        is_path = name == "image" and isinstance(values[0], str)
        parts.append(part.cast_column(name, Image()) if is_path else part)
    return concatenate_datasets(parts)


def _rows(path: Path) -> tuple[list[str], list[Any], list[Any]]:
    """User, input and label of each row; Any: any type that a file can hold."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"data source {str(path)!r} cannot be read: it is not valid JSON: {reason}") from error
    users, data = content.get("users"), content.get("user_data")
    if not isinstance(users, list) or not isinstance(data, dict):
        raise DataError(f"{str(path)!r}: expected a list `users` and an object `user_data`, as in LEAF's format")
    clients: list[str] = []
    inputs: list[Any] = []
    labels: list[Any] = []
    problems = []
    for user in users:
        rows = data.get(user) if isinstance(user, str) else None
        x, y = (rows.get("x"), rows.get("y")) if isinstance(rows, dict) else (None, None)
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
            problems.append(f"user {user!r} has no lists `x` and `y` of one length in `user_data`")
            continue
        clients += [user] * len(x)
        inputs += x
        labels += y
    refuse(repr(str(path)), problems)
    if not clients:
        raise DataError(f"{str(path)!r} has no rows")
    return clients, inputs, labels


def _inputs(path: Path, values: Sequence[Any]) -> tuple[str, list[Any]]:
    """The name of the input column, and its values."""
    if all(isinstance(value, str) for value in values):
        return _texts(path, values)
    sizes = {len(value) if isinstance(value, list) else -1 for value in values}
    side = math.isqrt(max(sizes))
    if len(sizes) == 1 and -1 not in sizes and all(isinstance(item, str) for value in values for item in value):
        if min(sizes) > _TWEET:
            return "text", [value[_TWEET] for value in values]
    elif len(sizes) == 1 and side > 1 and side**2 in sizes and _are_pixels(values):
        return "image", [[value[row * side : (row + 1) * side] for row in range(side)] for value in values]
    raise DataError(
        f"{str(path)!r}: `x` holds neither texts nor square images (lengths {listed(sorted(sizes))})",
        hint="convert the data to a table, such as JSON Lines with a column of clients",
    )


def _are_pixels(values: Sequence[Any]) -> bool:
    return all(isinstance(number, int | float) for number in chain.from_iterable(values))


def _texts(path: Path, values: Sequence[str]) -> tuple[str, list[Any]]:
    """The input column for texts, which may be names of image files."""
    suffixes = {Path(value).suffix.lower() for value in values}
    if not suffixes <= MODALITIES["image"].suffixes:
        return "text", list(values)
    # LEAF's layout of CelebA: `data/train/*.json` beside `data/raw/img_align_celeba/`.
    folders = [path.parent, *(path.parents[1] / "raw").glob("*")] if len(path.parents) > 1 else [path.parent]
    folder = next((folder for folder in folders if (folder / values[0]).is_file()), None)
    if folder is None:
        raise DataError(f"{str(path)!r}: `x` names images, but {values[0]!r} does not exist beside the file")
    return "image", [str((folder / value).absolute()) for value in values]
