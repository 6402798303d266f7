"""Looking through a folder: what people put there, without what programs leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedelta.errors import refuse

# What file managers, notebooks and archives leave behind; names with a dot in front are passed over in any case.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "icon\r"})


@dataclass(frozen=True)
class Tree:
    """What is in a folder.

    Args:
        root: the folder.
        files: all files, sorted.
        empty: folders in which there is neither file nor folder, sorted.
    """

    root: Path
    files: tuple[Path, ...]
    empty: tuple[Path, ...]

    def place(self, path: Path) -> tuple[str, ...]:
        """The folders between the root and a file of it, from the top."""
        return path.relative_to(self.root).parts[:-1]

    @classmethod
    def of(cls, root: Path) -> Tree:
        """What is in `root`; links are followed.

        Raises:
            DataError: a folder cannot be read, or a name cannot be written down.
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
    """What is wrong with a name that is no text; None for nothing."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"{str(path)!r} has a name that is not UTF-8: rename it, for a class or a client is called by it"
    return None


def _walk(root: Path, problems: list[str]) -> Iterator[tuple[Path, Sequence[str], Sequence[str]]]:
    """Folder, the folders and the files in it; each folder once, wherever links lead."""
    ways: dict[str, frozenset[str]] = {str(root): frozenset()}

    def note(error: OSError) -> None:
        problems.append(f"{error.filename!r} cannot be read: {error.strerror}")

    for folder, below, names in os.walk(root, followlinks=True, onerror=note):
        real = str(Path(folder).resolve())
        above = ways.pop(folder)
        if real in above:  # a link to a folder that it is in
            below[:] = []
            continue
        below[:] = sorted(name for name in below if _is_wanted(name))
        ways |= {str(Path(folder) / name): above | {real} for name in below}
        yield Path(folder), below, sorted(name for name in names if _is_wanted(name))


def _is_wanted(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in _LITTER
