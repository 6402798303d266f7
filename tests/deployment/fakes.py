"""Flower's SuperLink as the server sees it, in memory; and a server's folder without certificates."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedelta.deployment.server.hub import Hub
from fedelta.errors import LinkError, RefusedError
from fedelta.runtimes.flower.control import Node, Run


@dataclass
class SuperLink:
    """A `Control` that remembers what was asked."""

    is_up: bool = True
    known: dict[bytes, Node] = field(default_factory=dict)
    used: set[bytes] = field(default_factory=set)
    runs: dict[int, Run] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)

    def nodes(self) -> list[Node]:
        self._refuse_if_down()
        return list(self.known.values())

    def register(self, name: str, key: bytes) -> None:
        if key in self.used:
            raise RefusedError("public key in use")
        self.used.add(key)
        self.known[key] = Node(len(self.used), key, "registered", "", name)

    def unregister(self, node: Node) -> None:
        del self.known[node.key]

    def connect(self, name: str, status: str = "online") -> None:
        """The site comes or goes."""
        (node,) = [node for node in self.known.values() if node.name == name]
        self.known[node.key] = replace(node, status=status, since="10:00")

    def start(self, values: Mapping[str, str]) -> int:
        self._refuse_if_down()
        self.started.append(values["deployment"])
        number = len(self.started)
        self.runs[number] = Run("running")
        return number

    def run(self, number: int) -> Run | None:
        self._refuse_if_down()
        return self.runs.get(number)

    def stop(self, number: int) -> None:
        self.stopped.append(number)
        self.runs[number] = Run("finished")

    def _refuse_if_down(self) -> None:
        if not self.is_up:
            raise LinkError("cannot be reached")


@dataclass
class Clock:
    """Seconds that a test sets."""

    now: float = 0.0
    step: float = 0.01  # that passes between two looks, so that waiting ends

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def hub_at(path: Path) -> Hub:
    """A server's folder with everything but certificates."""
    hub = Hub(path)
    for folder in (hub.sites, hub.runs, hub.deployments, hub.logs):
        folder.mkdir(parents=True)
    hub.lock.touch()
    hub.settings_file.write_text('[server]\nhost = "127.0.0.1"\nlisten = "127.0.0.1"\nport = 9093\n', encoding="utf-8")
    return hub


_KEYS = (generate_private_key(SECP384R1()).public_key() for _ in itertools.count())


def put_key(hub: Hub, name: str) -> None:
    """A new key for a site."""
    content = next(_KEYS).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (hub.sites / f"{name}.pub").write_bytes(content)
