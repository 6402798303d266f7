"""Atomic, durable writing of files: a reader sees either the old or the new content. And files for their owner only."""

from __future__ import annotations

import os
from pathlib import Path

_SECRET_MODE, _FOLDER_MODE = 0o600, 0o700


def write_atomic(path: Path, content: str | bytes, *, writer: str = "") -> None:
    """Writes `content` to `path`, replacing an existing file; the directory must exist.

    Args:
        path: of the file.
        content: all of it.
        writer: differs between processes that may write the file at the same time.

    Content and name are on the disk when this returns. After an exception, Ctrl-C included, the previous file is
    unchanged and no temporary file remains.

    Raises:
        OSError: the disk is full or the directory cannot be written.
    """
    write_file(path, content, writer=writer)
    sync_directory(path.parent)


def write_secret(path: Path, content: bytes) -> None:
    """Like `write_atomic`, for a file that only its owner reads, at no moment otherwise."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _SECRET_MODE)
        try:
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def make_private(path: Path) -> Path:
    """Makes a folder that only its owner may enter, unless it is there, and returns it."""
    path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    return path


def only_owner_may_read(path: Path) -> bool:
    """Whether only the owner may read or write a file."""
    return path.stat().st_mode & 0o077 == 0


def write_file(path: Path, content: str | bytes, *, writer: str = "") -> None:
    """Like `write_atomic`, but the name is durable only after `sync_directory`; for many files in one directory."""
    # A fixed name, so that the next attempt overwrites the file that a killed process has left.
    temporary = path.with_name(f".{path.name}{writer}.partial")
    try:
        with temporary.open("wb", buffering=0) as file:
            write_all(file.fileno(), content.encode() if isinstance(content, str) else content)
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 -- the tests replace `os.replace` by a failing one
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Makes new names and renames in `directory` durable, if the operating system supports it."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Writes all of `content` to an open file, with as many calls as needed."""
    unwritten = memoryview(content)
    while unwritten:
        unwritten = unwritten[os.write(descriptor, unwritten) :]
