"""Which version of its memory the server expects of each client, and the server's copy of what is kept for a strategy.

A version is the round whose accepted reply wrote the memory; 0 is none. A client that has forgotten everything gets
back what it remembered for the strategy, such as its control variate of SCAFFOLD: without it the server's mean of all
control variates would be wrong for the rest of the run. The server can work it out from the uploads that it accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedelta.codecs.base import Codec
from fedelta.codecs.wire import decode
from fedelta.errors import PayloadError
from fedelta.federation.memory import Memories, Memory
from fedelta.params import Params, ParamSpec
from fedelta.strategies.base import RoundPlan, Steering

NO_VERSIONS: Mapping[str, Any] = {"versions": [], "unbroken": [], "copies": ""}  # as `Versions.snapshot` returns it


@dataclass(frozen=True)
class Copying:
    """How the server works out what a client remembers for the strategy.

    Args:
        steering: the client's side of the strategy.
        spec: what is tuned.
        up: codec of uploads.
    """

    steering: Steering
    spec: ParamSpec
    up: Codec


class Versions:
    """The versions of all clients, in two phases as `Memories`: an answer counts once its reply is accepted.

    Args:
        copying: None if clients keep nothing for the strategy.
    """

    def __init__(self, copying: Copying | None = None) -> None:
        self._copying = copying
        self._copies = Memories()
        self._current: dict[int, int] = {}  # of the clients that keep something
        self._answered: dict[int, int] = {}  # client to the version that it has if its reply is accepted
        self._unbroken: set[int] = set()  # accepted, and in every cohort since

    def begin(self, plan: RoundPlan) -> None:
        """Starts a round, or asks more of it: clients outside of the cohort drop what they have adrift."""
        self._unbroken.intersection_update(plan.cohort)

    def of(self, client_id: int) -> int:
        """The version that the client must have."""
        return self._current.get(client_id, 0)

    def keeps_adrift(self, client_id: int) -> bool:
        """Whether the client was in every cohort since its last accepted reply."""
        return client_id in self._unbroken

    def remembered(self, client_id: int) -> Params | None:
        """What a client without a memory remembers for the strategy; None for nothing."""
        if self._copying is None or self.of(client_id):
            return None
        memory = self._copies.of(client_id)
        return None if memory is None else memory.remembered

    def answer(self, client_id: int, version: int, payload: bytes) -> None:
        """Notes the version that the client has if its reply is accepted."""
        self._answered[client_id] = version
        if self._copying is None:
            return
        steering, spec, before = self._copying.steering, self._copying.spec, self._copies.of(client_id)
        remembered = steering.start(spec) if before is None else before.remembered
        # A payload that cannot be decoded is not accepted.
        with suppress(PayloadError):
            sent, _ = decode(payload, steering.extend(spec), self._copying.up)
            self._copies.stage(client_id, Memory(remembered=steering.remember(remembered, sent)))

    def forget(self, client_id: int) -> bool:
        """Notes that a client has lost what it kept; whether it was expected to keep something."""
        return self._current.pop(client_id, None) is not None

    def accept(self, client_ids: Iterable[int]) -> None:
        """Puts the answers of these clients into effect, and discards all others."""
        accepted = list(client_ids)
        for client_id in accepted:
            self._current.pop(client_id, None)
            if version := self._answered.get(client_id, 0):
                self._current[client_id] = version
        self._unbroken.update(accepted)
        self._copies.commit(accepted)
        self._answered.clear()

    def snapshot(self, folder: Path, round: int) -> dict[str, Any]:
        """Writes the copies, and returns everything else as JSON values."""
        mark = self._copies.snapshot(folder, round) if self._copying is not None else ""
        return {
            "versions": sorted(self._current.items()),
            "unbroken": sorted(self._unbroken),
            "copies": mark,
        }

    def restore(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Goes back to a snapshot.

        Raises:
            CheckpointError: the copies are missing or were changed.
        """
        self._current = dict(record["versions"])
        self._unbroken = set(record["unbroken"])
        self._answered.clear()
        self._copies.restore(folder, record["copies"])
