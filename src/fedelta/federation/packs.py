"""A pack and its answers as values that can cross to another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedelta.federation.memory import Memory
from fedelta.federation.records import Reply


@dataclass(frozen=True)
class Pack:
    """Clients that are trained together, with all that their training needs from the round and from earlier ones.

    Args:
        round: number of the round, from 1.
        upload: client id to the names of the tensors that it must send.
        payloads: client id to its download.
        memories: client id to what it keeps.
    """

    round: int
    upload: Mapping[int, tuple[str, ...]]
    payloads: Mapping[int, bytes]
    memories: Mapping[int, Memory]


@dataclass(frozen=True)
class Answer:
    """What a client's training gives.

    Args:
        reply: for the server.
        memory: what the client keeps if the reply is accepted; None: what it kept before.
    """

    reply: Reply
    memory: Memory | None = None
