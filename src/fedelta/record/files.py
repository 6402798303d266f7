"""Files that stay valid after a kill, Ctrl-C or a full disk.

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

# Any: a line read by `json.loads`; readers check the fields that they use.
Record = dict[str, Any]


@contextmanager
def exclusive(path: Path, message: str) -> Iterator[None]:
    """Context manager with a lock on the file `path`, which must exist; the system releases it if the process dies.

    Args:
        path: locked for other processes and other calls; its content does not change.
        message: of the refusal.

    Raises:
        RunError: another process has the lock.
    """
    if sys.platform == "win32":  # a file system without locks: second processes are not noticed
        yield
        return
    with path.open("r+b") as held:  # NFS locks a file only for those who may write to it
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(message, hint="wait for it, or end it.") from error
        yield


def is_locked(path: Path) -> bool:
    """Whether a process has the lock on the file `path`, which must exist; see `exclusive`."""
    try:
        with exclusive(path, ""):
            return False
    except RunError:
        return True


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Like `exclusive`, but waits while another process has the lock; for short operations."""
    if sys.platform == "win32":
        yield
        return
    with path.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def to_json(value: object, *, indent: int | None = None) -> str:
    """`value` as standard JSON with unsorted keys; NaN and infinity, which JSON lacks, become null."""
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
    """A position in a growing file, and the SHA-256 of the bytes before it."""

    num_bytes: int
    digest: str

    @classmethod
    def of(cls, content: bytes) -> Mark:
        """The mark at the end of a file with this content."""
        return cls(len(content), hashlib.sha256(content).hexdigest())


class Seal:
    """The running digest of a growing file; each call reads only new bytes.

    Args:
        path: of the file; a missing file counts as empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest, self._num_bytes = hashlib.sha256(), 0

    def mark(self, up_to: int | None = None) -> Mark:
        """Reads up to byte `up_to`, or to the end of the file; returns the mark there."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._num_bytes)
                while part := file.read(_CHUNK if up_to is None else min(_CHUNK, up_to - self._num_bytes)):
                    self._digest.update(part)
                    self._num_bytes += len(part)
        return Mark(self._num_bytes, self._digest.hexdigest())


@dataclass(frozen=True)
class JsonLines:
    """A growing file of JSON objects, one per line; a missing file counts as empty.

    Args:
        path: of the file, which is not kept open between calls.
    """

    path: Path

    @property
    def num_bytes(self) -> int:
        """Length of the file; `truncate` can cut it back to this length."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, records: Iterable[Mapping[str, object]]) -> None:
        """Appends `records`, and returns once they are on the disk; call it once per round; see `append_text`."""
        self.append_text("".join(to_json(record) + "\n" for record in records))

    def append_text(self, lines: str) -> None:
        """Appends whole lines of JSON, and returns once they are on the disk.

        On an exception the file is cut back to its previous length.

        Raises:
            OSError: the disk is full or the file cannot be written.
        """
        content = lines.encode()
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
        """Cuts the file to its first `num_bytes` bytes.

        Raises:
            RunError: the file is shorter, or no line ends there; nothing is cut.
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
        """Removes unreadable lines and records after `last_round`; for a log that may be lost."""
        records = [record for record in self.readable() if record["round"] <= last_round]
        content = b"".join(b"%s\n" % to_json(record).encode() for record in records)
        if content != (self.path.read_bytes() if self.path.exists() else b""):
            write_atomic(self.path, content)

    def readable(self) -> list[Record]:
        """The readable records of rounds, in order."""
        records = []
        for number, line in enumerate(self.lines(), start=1):
            try:
                record = self.parse(number, line)
            except RunError:
                continue
            if isinstance(record.get("round"), int):
                records.append(record)
        return records

    def read(self) -> list[Record]:
        """All records, in order.

        Raises:
            RunError: a line is not a JSON object; names file and line.
        """
        return [self.parse(number, line) for number, line in enumerate(self.lines(), start=1)]

    def lines(self) -> Iterator[bytes]:
        """Yields all lines without their ends, in order; reads the file as it goes.

        An unterminated last line is left out: it is being written, or a kill has cut it off.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return  # even if the rest has come by now
                yield line[:-1]

    def parse(self, number: int, line: bytes) -> Record:
        """The record in a line.

        Raises:
            RunError: it is not a JSON object; names the file and `number`.
        """
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{str(self.path)!r}, line {number}: not valid JSON: {error}.", hint=FROM_A_COPY) from error
        if not isinstance(record, dict):
            raise RunError(f"{str(self.path)!r}, line {number}: expected a JSON object, found {line[:40]!r}.")
        return record


def flatten(mapping: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the dotted key and the value, as text, of every leaf of nested mappings."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", UNKNOWN if value is None else json.dumps(value, default=str)


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
