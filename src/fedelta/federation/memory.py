"""What clients keep between rounds. It changes in two phases: staged after training, committed on acceptance.

The server may reject a reply after the client has trained. A client that had already changed its memory would then
disagree with the server; so a round only *stages* the new memory, and `commit` puts it into effect. On disk each client
has one file (memory_files.py): a snapshot writes only what has changed, and the process holds only the memories that
have changed since the last snapshot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from fedelta.federation.memory_files import MemoryFiles
from fedelta.params import Params


class Drift(NamedTuple):
    """A trained tensor that has not been sent yet, and its anchor, the value of its last download."""

    value: Tensor
    anchor: Tensor


@dataclass(frozen=True)
class Memory:
    """What one client keeps; all tensors are on the CPU.

    Args:
        local_only: tensors that never travel.
        remembered: tensors that it keeps for the strategy (`Steering`).
        adrift: tensors that it has trained but not sent yet.
        residual: what a lossy codec has left out of its uploads (codecs/channel.py).
        mirrored: the values of its last downloads, float16, if downloads carry changes (codecs/changes.py).
    """

    local_only: Params = field(default_factory=dict)
    remembered: Params = field(default_factory=dict)
    adrift: Mapping[str, Drift] = field(default_factory=dict)
    residual: Params = field(default_factory=dict)
    mirrored: Params = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to keep."""
        return not (self.local_only or self.remembered or self.adrift or self.residual or self.mirrored)

    def flat(self) -> Params:
        """All tensors in one dictionary, with names such as `residual/NAME`."""
        parts = {
            "local_only": self.local_only,
            "remembered": self.remembered,
            "value": {name: drift.value for name, drift in self.adrift.items()},
            "anchor": {name: drift.anchor for name, drift in self.adrift.items()},
            "residual": self.residual,
            "mirrored": self.mirrored,
        }
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    @classmethod
    def from_flat(cls, tensors: Mapping[str, Tensor]) -> Memory:
        """The inverse of `flat`."""
        names = ("local_only", "remembered", "value", "anchor", "residual", "mirrored")
        parts: dict[str, Params] = {part: {} for part in names}
        for name, tensor in tensors.items():
            part, _, short = name.partition("/")
            parts[part][short] = tensor
        adrift = {name: Drift(value, parts["anchor"][name]) for name, value in parts["value"].items()}
        return cls(parts["local_only"], parts["remembered"], adrift, parts["residual"], parts["mirrored"])


class Memories:
    """The memories of a site's clients. A client that has taken part in no round, or keeps nothing, has none.

    Args:
        known: client id to what it keeps at the start.
    """

    def __init__(self, known: Mapping[int, Memory] = MappingProxyType({})) -> None:
        self._staged: dict[int, Memory] = {}
        # Committed since the last snapshot; None for a client that no longer keeps anything.
        self._fresh: dict[int, Memory | None] = dict(known)
        self._adrift: set[int] = set()
        self._files: MemoryFiles | None = None

    def of(self, client_id: int) -> Memory | None:
        """The memory of a client; None if it has none."""
        if client_id in self._fresh:
            return self._fresh[client_id]
        tensors = self._files.read(client_id) if self._files is not None else None
        return None if tensors is None else Memory.from_flat(tensors)

    def begin(self, cohort: Collection[int]) -> None:
        """Starts a round: discards what is staged, and what clients outside of the cohort have adrift."""
        self._staged.clear()
        for client_id in sorted(self._adrift.difference(cohort)):
            if memory := self.of(client_id):
                self._put(client_id, replace(memory, adrift={}))

    def stage(self, client_id: int, memory: Memory) -> None:
        """Sets the memory that the client has if its reply is accepted."""
        self._staged[client_id] = memory

    def staged(self, client_id: int) -> Memory | None:
        """The memory that the client has if its reply of this round is accepted; None if there is none."""
        return self._staged.get(client_id)

    def commit(self, client_ids: Iterable[int]) -> None:
        """Puts the staged memories of these clients into effect, and discards those of all others."""
        for client_id in client_ids:
            if client_id in self._staged:
                self._put(client_id, self._staged[client_id])
        self._staged.clear()

    def local_only(self) -> Iterator[tuple[int, Params]]:
        """The clients that keep tensors which never travel, ascending, with these tensors."""
        client_ids = {client_id for client_id, memory in self._fresh.items() if memory is not None}
        if self._files is not None:
            client_ids |= self._files.client_ids - self._fresh.keys()
        for client_id in sorted(client_ids):
            if (memory := self.of(client_id)) and memory.local_only:
                yield client_id, memory.local_only

    def snapshot(self, folder: Path, round: int) -> str:
        """Writes what has changed since the last snapshot; see `Runtime.snapshot`."""
        if self._files is None or self._files.folder != folder:
            self._files = MemoryFiles(folder)
        changed = {client_id: None if memory is None else memory.flat() for client_id, memory in self._fresh.items()}
        mark = self._files.save(round, changed, self._adrift)
        self._fresh.clear()
        return mark

    def restore(self, folder: Path, mark: str) -> None:
        """Goes back to a snapshot; see `Runtime.restore`."""
        self._files = MemoryFiles(folder)
        self._adrift = self._files.restore(mark)
        self._fresh.clear()
        self._staged.clear()

    def _put(self, client_id: int, memory: Memory) -> None:
        if memory.is_empty and self.of(client_id) is None:
            return
        self._fresh[client_id] = None if memory.is_empty else memory
        if memory.adrift:
            self._adrift.add(client_id)
        else:
            self._adrift.discard(client_id)
