"""Files that survive a kill, Ctrl-C and a full disk.

`JsonLines` grows a file by whole records and takes a failed append back.
`exclusive` keeps a second process out while one writes, `in_turn` lets it wait.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedelta.durable import sync_directory, write_all, write_atomic
from fedelta.errors import RunError
from fedelta.record.numbers import UNKNOWN

if sys.platform != "win32":
    import fcntl

_CHUNK = 2**20
FROM_A_COPY = "bring the file back from a copy."

# Whatever `json.loads` makes of a line; the readers check the fields that they use.
Record = dict[str, Any]


@contextmanager
def exclusive(path: Path, message: str) -> Iterator[None]:
    """Holds a lock on the file `path`, which must exist; the system releases it when the process dies.

    Args:
        path: a second process, or a second call, that wants it is refused. Its content is not touched.
        message: of the refusal.

    Raises:
        RunError: another process has the lock.
    """
    if sys.platform == "win32":  # it has no such lock: there nothing is guarded against a second process
        yield
        return
    with path.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(message, hint="wait for it, or end it.") from error
        yield


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """As `exclusive`, but waits while another process has the lock: for what takes a moment."""
    if sys.platform == "win32":
        yield
        return
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def to_json(value: object, *, indent: int | None = None) -> str:
    """`value` as standard JSON, keys in their own order; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def read_json(path: Path) -> Record:
    """The JSON object in `path`.

    Raises:
        RunError: the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"cannot read {str(path)!r}: {error.strerror or error}.", hint=FROM_A_COPY) from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{str(path)!r} is not valid JSON: {error}.", hint=FROM_A_COPY) from error
    if not isinstance(value, dict):
        raise RunError(f"{str(path)!r} holds a JSON {type(value).__name__}, expected an object.", hint=FROM_A_COPY)
    return value


@dataclass(frozen=True)
class Mark:
    """A place in a file that grows, and SHA-256 of all before it."""

    num_bytes: int
    digest: str

    @classmethod
    def of(cls, content: bytes) -> Mark:
        """The end of a file with this content."""
        return cls(len(content), hashlib.sha256(content).hexdigest())


class Seal:
    """The digest of a file that grows, kept up as it does: each call reads only what is new.

    Args:
        path: of the file; one that is missing counts as empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest, self._num_bytes = hashlib.sha256(), 0

    def mark(self, up_to: int | None = None) -> Mark:
        """Reads on to byte `up_to`, or to the end of the file."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._num_bytes)
                while part := file.read(_CHUNK if up_to is None else min(_CHUNK, up_to - self._num_bytes)):
                    self._digest.update(part)
                    self._num_bytes += len(part)
        return Mark(self._num_bytes, self._digest.hexdigest())


@dataclass(frozen=True)
class JsonLines:
    """A file of JSON objects, one a line, that only grows; a missing file counts as empty.

    Args:
        path: where. Nothing is kept open between calls.
    """

    path: Path

    @property
    def num_bytes(self) -> int:
        """Length of the file: what a checkpoint stores so that `truncate` can come back to it."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, records: Iterable[Mapping[str, object]]) -> None:
        """Adds `records` and returns when they are on the disk; call it once a round.

        On an exception the file is cut back to its previous length.

        Raises:
            OSError: the disk is full or the file cannot be written.
        """
        content = "".join(to_json(record) + "\n" for record in records).encode()
        before = self.num_bytes
        with self.path.open("ab", buffering=0) as file:
            try:
                write_all(file.fileno(), content)
                os.fsync(file.fileno())
            except BaseException:
                os.ftruncate(file.fileno(), before)
                raise
        if not before:
            sync_directory(self.path.parent)

    def truncate(self, num_bytes: int) -> None:
        """Forgets everything after the first `num_bytes` bytes.

        Raises:
            RunError: the file is shorter, or does not end a line there; nothing is cut then.
        """
        current = self.num_bytes
        if current < num_bytes:
            raise RunError(
                f"{str(self.path)!r} has {current} bytes, the checkpoint was written when it had {num_bytes}.",
                hint="the file was cut or replaced; restore it, or start the run anew with another `--out`.",
            )
        if current == num_bytes == 0:
            return
        with self.path.open("rb+") as file:
            file.seek(max(num_bytes - 1, 0))
            if num_bytes and file.read(1) != b"\n":
                raise RunError(
                    f"{str(self.path)!r} has no end of line at byte {num_bytes}, where a round ended.",
                    hint="the file was edited; restore it, or start the run anew with another `--out`.",
                )
            file.truncate(num_bytes)
            file.flush()
            os.fsync(file.fileno())

    def salvage(self, last_round: int) -> None:
        """Cuts off what cannot be read, and what is of later rounds: for a log that may be lost, wholly or in part."""
        records = [record for record in self.readable() if record["round"] <= last_round]
        content = b"".join(b"%s\n" % to_json(record).encode() for record in records)
        if content != (self.path.read_bytes() if self.path.exists() else b""):
            write_atomic(self.path, content)

    def readable(self) -> list[Record]:
        """The records of rounds that can be read, in order, without those that cannot."""
        records = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else (), start=1):
            try:
                record = self._parse(number, line)
            except RunError:
                continue
            if isinstance(record.get("round"), int):
                records.append(record)
        return records

    def read(self) -> list[Record]:
        """All records, in order.

        An unterminated last line is left out: it is an append under way or one that a kill cut off.

        Raises:
            RunError: a line is no JSON object; the message names file and line.
        """
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_bytes().split(b"\n")
        return [self._parse(number, line) for number, line in enumerate(lines, start=1)]

    def _parse(self, number: int, line: bytes) -> Record:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{str(self.path)!r}, line {number}: not valid JSON: {error}.", hint=FROM_A_COPY) from error
        if not isinstance(record, dict):
            raise RunError(f"{str(self.path)!r}, line {number}: expected a JSON object, found {line[:40]!r}.")
        return record


def flatten(mapping: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and value as text, for every leaf of nested mappings."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value
        else:
            # Sorted: TOML puts the tables of a list's item behind its other keys, which changes nothing.
            yield f"{prefix}{key}", UNKNOWN if value is None else json.dumps(value, default=str, sort_keys=True)


def _finite(value: object) -> object:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value
