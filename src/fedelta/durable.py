"""Files that are replaced as a whole: a reader sees the old or the new content, never a mixture."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Puts `content` at `path`, replacing what was there; the directory must exist.

    The content and its name are on the disk when this returns. On any exception, Ctrl-C included, the
    previous file is untouched and no temporary file remains.

    Raises:
        OSError: the disk is full or the directory cannot be written.
    """
    write_file(path, content)
    sync_directory(path.parent)


def write_file(path: Path, content: str | bytes) -> None:
    """As `write_atomic`, but the name is only durable after `sync_directory`: for many files of one directory."""
    # A fixed name, so that what a kill leaves behind is overwritten by the next attempt and does not pile up.
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb", buffering=0) as file:
            write_all(file.fileno(), content.encode() if isinstance(content, str) else content)
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 -- the tests replace `os.replace` by a failing one
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Makes renames and new names in `directory` durable, where the system knows how."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Writes all of `content` to an open file, however many calls that takes."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
