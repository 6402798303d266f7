"""What the clients of a site remember, on the site's disk, in versions.

    CLIENT-ROUND.memory     32 bytes of SHA-256, then a safetensors file with all tensors of the client's memory

A version is the round that wrote a memory. The site cannot know whether the server accepted the reply of that round;
the next message for the client says so, because it names the version that the client must have. Until then the version
before is kept, so that a server which goes back to its checkpoint finds the memory that belongs to it.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from pathlib import Path

from safetensors import SafetensorError

from fedelta.durable import write_atomic
from fedelta.federation.memory import Memory
from fedelta.federation.memory_files import packed, unpacked

logger = logging.getLogger("fedelta")
_DIGEST_BYTES = hashlib.sha256().digest_size
NOTHING = 0  # version of a client that keeps nothing


class MemoryStore:
    """The memories of one run.

    Args:
        folder: for these files alone; made when there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions: defaultdict[int, set[int]] = defaultdict(set)
        for path in folder.glob("*.memory"):
            client_id, _, round = path.stem.partition("-")
            if client_id.isdecimal() and round.isdecimal():
                self._versions[int(client_id)].add(int(round))

    def read(self, client_id: int, version: int) -> Memory | None:
        """The memory of a client at a version; None if it is lost or damaged."""
        if version not in self._versions[client_id]:
            return None
        path = self._path(client_id, version)
        try:
            content = path.read_bytes()
            digest, tensors = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if hashlib.sha256(tensors).digest() == digest:
                return Memory.from_flat(unpacked(tensors))
            reason = "its content does not match its checksum"
        except (OSError, SafetensorError) as error:
            reason = str(error)
        logger.warning("the memory of client %d from round %d cannot be read: %s", client_id, version, reason)
        return None

    def write(self, client_id: int, round: int, memory: Memory) -> int:
        """Writes what a client has if its reply of `round` is accepted; returns the version, `NOTHING` for nothing.

        Raises:
            OSError: the disk is full or the folder cannot be written; the versions before are intact.
        """
        if memory.is_empty:
            self._delete(client_id, round)
            return NOTHING
        tensors = packed(memory.flat())
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path(client_id, round), hashlib.sha256(tensors).digest() + tensors)
        self._versions[client_id].add(round)
        return round

    def expect(self, client_id: int, version: int, round: int) -> None:
        """Deletes the versions of a client that no message can ask for after one of `round` that names `version`.

        Older versions belong to checkpoints that the server has replaced. Versions between the two are of replies that
        were not accepted. In a message of an earlier round than the newest version, which came late or from a server
        that went back, nothing is known about newer versions, so they stay.
        """
        versions = self._versions[client_id]
        is_news = all(known < round for known in versions)
        for other in sorted(versions):
            if other < version or (is_news and version < other < round):
                self._delete(client_id, other)

    def _delete(self, client_id: int, version: int) -> None:
        self._path(client_id, version).unlink(missing_ok=True)
        self._versions[client_id].discard(version)

    def _path(self, client_id: int, version: int) -> Path:
        return self.folder / f"{client_id}-{version}.memory"
