"""Clients' memories on disk: a file for each client, and an index that says which file counts.

    CLIENT-ROUND.safetensors    what the client keeps, as of the end of that round
    index-MARK.json             client id to the round and the checksum of its file; MARK is the index's own checksum

A snapshot writes the files of the clients that have changed, then an index of a new name, and returns its mark, which
the checkpoint of the same round holds. The files of the snapshot before stay until the next one: a kill between the
snapshot and the checkpoint finds them there.
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
    """The file that counts for a client: the round that wrote it, and its checksum."""

    round: int
    checksum: str


class MemoryFiles:
    """The files of one folder, which is made when there is something to write.

    Args:
        folder: holds nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[int, _Entry] = {}
        self._index: Path | None = None
        # Files of the snapshot before the last, to be deleted with the next one; None: whatever is not in the index.
        self._outdated: list[Path] | None = None

    @property
    def client_ids(self) -> set[int]:
        """Clients that keep something."""
        return set(self._entries)

    def read(self, client_id: int) -> Params | None:
        """The tensors that the client keeps; None where it keeps nothing.

        Raises:
            CheckpointError: its file is missing or was altered.
        """
        if client_id not in self._entries:
            return None
        path, entry = self._path(client_id), self._entries[client_id]
        try:
            content = path.read_bytes()
            if _checksum(content) != entry.checksum:
                raise _altered(path, "its content does not match its checksum")
            return _unpacked(content)
        except (OSError, SafetensorError) as error:
            raise _altered(path, str(error)) from error

    def save(self, round: int, changed: Mapping[int, Params | None], adrift: Collection[int]) -> str:
        """Writes what has changed, and gives the mark of all there is; empty where there never was anything.

        Args:
            round: that has ended.
            changed: client id to all that it keeps, None for nothing.
            adrift: clients that have tensors adrift.

        Raises:
            OSError: the disk is full or the folder cannot be written; the last snapshot is as it was.
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
                content = _packed(tensors)
                write_file(self.folder / _name(client_id, round), content)
                entries[client_id] = _Entry(round, _checksum(content))
        written = json.dumps({"clients": entries, "adrift": sorted(adrift)})
        index = self.folder / f"index-{_checksum(written.encode())}.json"
        write_file(index, written)
        sync_directory(self.folder)
        if self._index is not None and self._index != index:
            replaced.append(self._index)
        self._entries = entries
        self._delete_outdated(index, replaced)
        self._index, self._outdated = index, replaced
        return index.stem.removeprefix("index-")

    def restore(self, mark: str) -> set[int]:
        """Goes back to the snapshot of `mark`, and gives the clients that had tensors adrift; deletes nothing.

        Raises:
            CheckpointError: the snapshot is not there, or was altered.
        """
        self._entries, self._index, self._outdated = {}, None, None
        if not mark:
            return set()
        path = self.folder / f"index-{mark}.json"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _altered(path, error.strerror or str(error)) from error
        if _checksum(content) != mark:
            raise _altered(path, "its content does not match its name")
        index = json.loads(content)
        self._entries = {int(client_id): _Entry(*entry) for client_id, entry in index["clients"].items()}
        self._index = path
        return set(index["adrift"])

    def _delete_outdated(self, index: Path, replaced: Collection[Path]) -> None:
        """Deletes what neither this snapshot nor the one before needs."""
        if self._outdated is None:  # the first snapshot of this process: a kill may have left files behind
            needed = {index, self._index, *replaced, *map(self._path, self._entries)}
            self._outdated = [path for path in self.folder.iterdir() if path not in needed]
        for path in self._outdated:
            if path != index:  # an index may come back: the same clients with the same files
                path.unlink(missing_ok=True)

    def _path(self, client_id: int) -> Path:
        return self.folder / _name(client_id, self._entries[client_id].round)


def _packed(tensors: Params) -> bytes:
    # safetensors has an order of its own; the names keep ours.
    names = {"names": json.dumps(list(tensors))}
    return bytes(safetensors.save({name: tensor.contiguous() for name, tensor in tensors.items()}, names))


def _unpacked(content: bytes) -> Params:
    length = int.from_bytes(content[:8], "little")
    names = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["names"])
    return select(safetensors.load(content), names)


def _name(client_id: int, round: int) -> str:
    return f"{client_id}-{round}.safetensors"


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_MARK_DIGITS]


def _altered(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"what a client keeps cannot be read: {str(path)!r}: {why}.",
        hint="it was deleted or damaged; restore it from a copy, or start the run anew.",
    )
