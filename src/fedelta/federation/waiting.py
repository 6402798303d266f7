"""Replies of a round that wait until it is their turn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import IO

from fedelta.federation.records import Reply

# Payloads beyond it wait in a file: a cohort of whole models may not fit into memory.
_WAITING_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Kept:
    """A reply that waits.

    Args:
        reply: with its payload, unless that is in the file.
        length: of the payload.
        start: where it begins in the file; None: it is in memory.
    """

    reply: Reply
    length: int
    start: int | None = None


class Waiting:
    """Replies by client, with their payloads in memory up to `_WAITING_BYTES`, and then in `file`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._in_memory = 0
        self._replies: dict[int, list[_Kept]] = {}

    def put(self, reply: Reply) -> None:
        """Keeps a reply; of a second one of a client only the length, because it is never read."""
        of_client, length = self._replies.setdefault(reply.client_id, []), len(reply.payload)
        if of_client:
            of_client.append(_Kept(replace(reply, payload=b""), length))
        elif self._in_memory + length <= _WAITING_BYTES:
            self._in_memory += length
            of_client.append(_Kept(reply, length))
        else:
            start = self._file.seek(0, 2)
            self._file.write(reply.payload)
            of_client.append(_Kept(replace(reply, payload=b""), length, start))

    def without_memory(self) -> list[int]:
        """The clients whose only reply says that they have forgotten what they kept, ascending."""
        return sorted(client_id for client_id in self._replies if self._forgot(client_id))

    def has_answered(self, client_id: int) -> bool:
        """Whether a client has replied, and not that it has forgotten what it kept."""
        return client_id in self._replies and not self._forgot(client_id)

    def _forgot(self, client_id: int) -> bool:
        replies = self._replies[client_id]
        fault = replies[0].reply.fault
        return len(replies) == 1 and fault is not None and fault.cause == "forgot"

    def discard(self, client_ids: Iterable[int]) -> None:
        """Drops the replies of these clients, which have no payload."""
        for client_id in client_ids:
            del self._replies[client_id]

    def lengths(self, client_id: int) -> list[int]:
        """The payload bytes of each reply of a client."""
        return [kept.length for kept in self._replies.get(client_id, ())]

    def pop(self, client_id: int) -> Reply:
        """The reply of a client that has sent one; it no longer waits."""
        [kept] = self._replies.pop(client_id)
        if kept.start is None:
            self._in_memory -= kept.length
            return kept.reply
        self._file.seek(kept.start)
        return replace(kept.reply, payload=self._file.read(kept.length))
