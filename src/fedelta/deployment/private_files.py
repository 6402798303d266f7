"""Files that only their owner may read: keys and secrets, and the folders around them."""

from __future__ import annotations

import os
from pathlib import Path

from fedelta.durable import sync_directory, write_all

SECRET_MODE = 0o600
FOLDER_MODE = 0o700


def write_secret(path: Path, content: bytes) -> None:
    """Writes a file that only its owner reads, at no moment otherwise; replaces an existing one atomically."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_directory(path.parent)


def make_private(path: Path) -> Path:
    """Makes a folder that only its owner may enter, unless it is there, and returns it."""
    path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    return path


def is_private(path: Path) -> bool:
    """Whether nobody but the owner may read or write it."""
    return path.stat().st_mode & 0o077 == 0
