"""Lists the files in a folder, without hidden files and files that programs leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedelta.errors import refuse

# Files that file managers, notebooks and archives leave behind; names that begin with a dot are always ignored.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "icon\r"})


@dataclass(frozen=True)
class Tree:
    """The content of a folder.

    Args:
        root: the folder.
        files: all files in it and in its sub-folders, sorted.
        empty: sub-folders without files or folders, sorted.
    """

    root: Path
    files: tuple[Path, ...]
    empty: tuple[Path, ...]

    def place(self, path: Path) -> tuple[str, ...]:
        """The names of the folders between the root and a file, from the top."""
        return path.relative_to(self.root).parts[:-1]

    @classmethod
    def of(cls, root: Path) -> Tree:
        """The content of `root`; links are followed.

        Raises:
            DataError: a folder cannot be read, or a name is not UTF-8.
        """
        problems: list[str] = []
        files: list[Path] = []
        empty: list[Path] = []
        for folder, below, names in _walk(root, problems):
            files += [folder / name for name in names]
            if not names and not below:
                empty.append(folder)
        problems += [problem for path in [root, *files, *empty] if (problem := unwritable(path))]
        refuse(f"folder {str(root)!r}", problems)
        return cls(root, tuple(sorted(files)), tuple(sorted(path for path in empty if path != root)))


def unwritable(path: Path) -> str | None:
    """The problem with a path that is not UTF-8; else None."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"{str(path)!r} has a name that is not UTF-8: rename it, since names identify classes and clients"
    return None


def _walk(root: Path, problems: list[str]) -> Iterator[tuple[Path, Sequence[str], Sequence[str]]]:
    """Yields each folder with the folders and files in it; links that lead back to a parent are not followed."""
    parents: dict[str, frozenset[str]] = {str(root): frozenset()}

    def note(error: OSError) -> None:
        problems.append(f"{error.filename!r} cannot be read: {error.strerror}")

    for folder, below, names in os.walk(root, followlinks=True, onerror=note):
        real = str(Path(folder).resolve())
        above = parents.pop(folder)
        if real in above:  # a link to a folder that contains it
            below[:] = []
            continue
        below[:] = sorted(name for name in below if _is_user_file(name))
        parents |= {str(Path(folder) / name): above | {real} for name in below}
        yield Path(folder), below, sorted(name for name in names if _is_user_file(name))


def _is_user_file(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in _LITTER
