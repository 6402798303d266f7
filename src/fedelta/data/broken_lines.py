"""Finds lines of CSV and JSON Lines files that are no rows, for `data.on_error = "skip"`.

Such a line takes down the whole file when it is read. Here it becomes a copy of the first good row, so that rows keep
their numbers and columns their types, and the column `BROKEN` says why; `screened` leaves the row out.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

BROKEN = "fedelta: why the line is broken"
_GOOD = "-"  # not empty: a column without values has no type
_END = "\r\n"
_LAST = "fedelta: the line after the last"
_MOST = 0.5  # of the lines of a file; a file of which more are broken is another kind of file


@dataclass(frozen=True)
class Lines:
    """The rows of a file.

    Args:
        rows: each as text, without its end; for CSV without the header.
        reasons: place of each broken row to the reason; its text is that of a good row.
        header: of a CSV file.
    """

    rows: Sequence[str]
    reasons: dict[int, str]
    header: str = ""

    def marked(self, suffix: str) -> str:
        """The content of the file with the column `BROKEN`."""
        reasons = [self.reasons.get(place, _GOOD) for place in range(len(self.rows))]
        if suffix == ".csv":
            rows = [f"{row},{_quoted(reason)}" for row, reason in zip(self.rows, reasons, strict=True)]
            return "\n".join([f"{self.header},{_quoted(BROKEN)}", *rows, ""])
        key = json.dumps(BROKEN)
        opened = [row.lstrip()[1:].lstrip() for row in self.rows]
        return "".join(
            f"{{{key}: {json.dumps(reason)}{'' if row.startswith('}') else ', '}{row}\n"
            for row, reason in zip(opened, reasons, strict=True)
        )


def marked(paths: Sequence[Path]) -> list[str] | None:
    """The contents of files of one kind with the column `BROKEN`; None if no line of them is known to be broken."""
    suffix = paths[0].suffix.lower()
    if suffix not in (".csv", ".json", ".jsonl"):
        return None
    read = _of_csv if suffix == ".csv" else _of_json
    files = [read(path.read_bytes().decode("utf-8-sig", errors="surrogateescape")) for path in paths]
    if not any(lines is not None and lines.reasons for lines in files):
        return None
    known = [lines for lines in files if lines is not None]
    return [lines.marked(suffix) for lines in known] if len(known) == len(files) else None


def wrong_rows(dataset: Dataset) -> dict[int, str]:
    """The rows that the column `BROKEN` marks, with their reasons."""
    if BROKEN not in dataset.column_names:
        return {}
    return {row: str(reason) for row, reason in enumerate(dataset[BROKEN][:]) if reason not in (None, _GOOD)}


def separated(dataset: Dataset) -> tuple[Dataset, dict[int, str]]:
    """A data set without the column `BROKEN`, and the rows that it marks with their reasons."""
    if BROKEN not in dataset.column_names:
        return dataset, {}
    return dataset.remove_columns(BROKEN), wrong_rows(dataset)


def _of_csv(text: str) -> Lines | None:
    """The rows of a CSV file; None if it cannot be told."""
    # A quotation mark that nothing closes swallows this line too; otherwise it is a row of its own.
    reader = csv.reader(io.StringIO("\n".join([text.rstrip("\r\n"), _LAST]), newline=""))
    rows: list[list[str]] = []
    reasons: dict[int, str] = {}
    good: list[str] | None = None
    in_all = in_broken = before = 0  # lines
    try:
        header = next(reader, [])
        before = reader.line_num
        for fields in reader:
            num_lines, before = reader.line_num - before, reader.line_num
            if not fields or fields == [_LAST]:  # an empty line is no row
                continue
            num_lines -= _is_open(fields)
            if reason := _wrong_fields(fields, len(header), num_lines):
                reasons[len(rows)] = reason
                in_broken += num_lines
            else:
                good = good or fields
            rows.append(fields)
            in_all += num_lines
    except csv.Error:
        return None
    if good is None or in_broken > _MOST * in_all or any(map(_has_wrong_bytes, header)):
        return None
    lines = [_line(good if place in reasons else fields) for place, fields in enumerate(rows)]
    return Lines(lines, reasons, _line(header))


def _wrong_fields(fields: Sequence[str], num_columns: int, num_lines: int) -> str | None:
    if any(map(_has_wrong_bytes, fields)):
        return "its bytes are no UTF-8"
    if _is_open(fields):
        return f"its quotation mark is not closed: all {num_lines} lines to the end of the file belong to it"
    if len(fields) == num_columns:
        return None
    over = f" over {num_lines} lines, as a quotation mark is not closed" if num_lines > 1 else ""
    return f"it has {len(fields)} of {num_columns} columns{over}"


def _is_open(fields: Sequence[str]) -> bool:
    """Whether a row goes on to the end of the file, as nothing closes its quotation mark."""
    return fields[-1].endswith(f"\n{_LAST}")


def _of_json(text: str) -> Lines | None:
    """The rows of a file with an object in each line; None if it is another JSON file."""
    rows: list[str] = []
    reasons: dict[int, str] = {}
    good: str | None = None
    for line in text.split("\n"):
        if not line.strip():
            continue
        if reason := _wrong_object(line):
            reasons[len(rows)] = reason
        else:
            good = good or line
        rows.append(line)
    if good is None or len(reasons) > _MOST * len(rows):
        return None
    return Lines([good if place in reasons else line for place, line in enumerate(rows)], reasons)


def _wrong_object(line: str) -> str | None:
    if _has_wrong_bytes(line):
        return "its bytes are no UTF-8"
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"it is not valid JSON: {error.msg.lower()}, character {error.pos + 1} of the line"
    except (ValueError, RecursionError):  # numbers of thousands of digits, and thousands of brackets
        return "it is JSON that cannot be read"
    return None if isinstance(value, dict) else f"it is a JSON {type(value).__name__}, no object"


def _has_wrong_bytes(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= letter <= "\udcff" for letter in text)


def _line(fields: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator=_END).writerow(fields)  # it quotes what has a character of the end in it
    return text.getvalue().removesuffix(_END)


def _quoted(text: str) -> str:
    return _line([text, ""])[:-1]
