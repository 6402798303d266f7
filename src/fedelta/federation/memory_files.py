"""Clients' memories on disk: one file per client, and an index that names the current file of each.

    CLIENT-ROUND.safetensors    the client's memory at the end of that round
    index-MARK.json             client id to the round and the checksum of its file; MARK is the checksum of the index

A snapshot writes the files of the clients whose memory has changed, then an index with a new name, and returns its
mark, which the checkpoint of the same round stores. The files of the previous snapshot are deleted only by the next
one, so that a run that is killed between snapshot and checkpoint can resume from the previous checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors import torch as safetensors

from fedelta.durable import sync_directory, write_file
from fedelta.errors import CheckpointError
from fedelta.params import Params, select

_MARK_DIGITS = 16


class _Entry(NamedTuple):
    """The current file of a client: the round that wrote it, and its checksum."""

    round: int
    checksum: str


class MemoryFiles:
    """The memory files in one folder.

    Args:
        folder: for these files alone; made by the first `save` that has something to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[int, _Entry] = {}
        self._index: Path | None = None
        # Files that the next snapshot deletes; None, before the first one, for every file that it does not need.
        self._outdated: list[Path] | None = None

    @property
    def client_ids(self) -> set[int]:
        """Ids of the clients that keep something."""
        return set(self._entries)

    def read(self, client_id: int) -> Params | None:
        """The tensors that the client keeps; None if it keeps nothing.

        Raises:
            CheckpointError: its file is missing or was changed.
        """
        if client_id not in self._entries:
            return None
        path, entry = self._path(client_id), self._entries[client_id]
        try:
            content = path.read_bytes()
            if _checksum(content) != entry.checksum:
                raise _unreadable(path, "its content does not match its checksum")
            return unpacked(content)
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, str(error)) from error

    def save(self, round: int, changed: Mapping[int, Params | None], adrift: Collection[int]) -> str:
        """Writes a snapshot and returns its mark, which is empty as long as no client has kept anything.

        Args:
            round: number of the round that has ended.
            changed: client id to all tensors that it keeps, None for nothing; only of clients that have changed.
            adrift: ids of the clients that have tensors adrift.

        Raises:
            OSError: the disk is full or the folder cannot be written; the previous snapshot is intact.
        """
        if not changed and self._index is None:
            return ""
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = dict(self._entries)
        replaced: list[Path] = []
        for client_id, tensors in sorted(changed.items()):
            if client_id in entries and entries[client_id].round != round:
                replaced.append(self._path(client_id))
            entries.pop(client_id, None)
            if tensors is not None:
                content = packed(tensors)
                write_file(self.folder / _name(client_id, round), content)
                entries[client_id] = _Entry(round, _checksum(content))
        index_text = json.dumps({"clients": entries, "adrift": sorted(adrift)})
        index = self.folder / f"index-{_checksum(index_text.encode())}.json"
        write_file(index, index_text)
        sync_directory(self.folder)
        if self._index is not None and self._index != index:
            replaced.append(self._index)
        self._entries = entries
        self._delete_outdated(index, replaced)
        self._index, self._outdated = index, replaced
        return index.stem.removeprefix("index-")

    def restore(self, mark: str) -> set[int]:
        """Goes back to the snapshot of `mark` and returns the clients that had tensors adrift; deletes no file.

        Raises:
            CheckpointError: the snapshot is missing or was changed.
        """
        self._entries, self._index, self._outdated = {}, None, None
        if not mark:
            return set()
        path = self.folder / f"index-{mark}.json"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error.strerror or str(error)) from error
        if _checksum(content) != mark:
            raise _unreadable(path, "its content does not match its name")
        index = json.loads(content)
        self._entries = {int(client_id): _Entry(*entry) for client_id, entry in index["clients"].items()}
        self._index = path
        return set(index["adrift"])

    def _delete_outdated(self, index: Path, replaced: Collection[Path]) -> None:
        """Deletes the files that neither this snapshot nor the previous one needs."""
        if self._outdated is None:  # the first snapshot of this process: a killed process may have left files behind
            needed = {index, self._index, *replaced, *map(self._path, self._entries)}
            self._outdated = [path for path in self.folder.iterdir() if path not in needed]
        for path in self._outdated:
            if path != index:  # the same clients with the same files have the same index as before
                path.unlink(missing_ok=True)

    def _path(self, client_id: int) -> Path:
        return self.folder / _name(client_id, self._entries[client_id].round)


def packed(tensors: Params) -> bytes:
    """All tensors as the content of a safetensors file that keeps their order."""
    # safetensors sorts tensors by type and name; the metadata keep the original order.
    names = {"names": json.dumps(list(tensors))}
    return bytes(safetensors.save({name: tensor.contiguous() for name, tensor in tensors.items()}, names))


def unpacked(content: bytes) -> Params:
    """The inverse of `packed`."""
    length = int.from_bytes(content[:8], "little")
    names = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["names"])
    return select(safetensors.load(content), names)


def _name(client_id: int, round: int) -> str:
    return f"{client_id}-{round}.safetensors"


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_MARK_DIGITS]


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the clients' memory file {str(path)!r} cannot be read: {reason}.",
        hint="it was deleted or damaged; restore it from a backup, or start the run again.",
    )
