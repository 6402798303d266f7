"""Texts in files, for models that read texts: one a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedelta.data.loading import TABLES
from fedelta.errors import refuse

_SUFFIX = ".txt"


def texts_of(inputs: Sequence[str]) -> list[str]:
    """The inputs of a text model, with the lines of each file in its place; empty lines are left out.

    An input is a file if it is the path of one, or ends with `.txt`; any other is a text.

    Raises:
        DataError: a file does not exist, is a table, is no UTF-8 text, or has no text in it; names all of them.
    """
    texts: list[str] = []
    problems: list[str] = []
    for given in inputs:
        if not _is_file(given):
            texts.append(given)
            continue
        if Path(given).suffix.lower() in TABLES:  # its lines are rows with labels and other columns
            problems.append(f"{given!r} is a table")
            continue
        try:
            lines = [line.strip() for line in Path(given).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError:
            problems.append(f"{given!r} is not text in UTF-8")
        except OSError as error:
            problems.append(f"{given!r}: {error.strerror}")
        else:
            if any("\0" in line for line in lines):
                problems.append(f"{given!r} is not text, but binary")
            elif lines:
                texts += lines
            else:
                problems.append(f"{given!r} has no text in it")
    refuse(
        "inputs",
        problems,
        hint="a text model reads files in UTF-8, one text a line; of a table write the column of texts to such a file.",
    )
    return texts


def _is_file(given: str) -> bool:
    try:
        return Path(given).is_file() or (given.endswith(_SUFFIX) and "\n" not in given and " " not in given)
    except (OSError, ValueError):  # too long for a name, or with a null character: a text
        return False
