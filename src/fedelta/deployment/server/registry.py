"""Keeps Flower's list of sites like the folder of their keys, and records who is connected."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from fedelta.deployment.server.hub import Hub
from fedelta.deployment.server.keys import SUFFIX, Keys, read_keys
from fedelta.durable import write_file
from fedelta.errors import RefusedError
from fedelta.runtimes.flower.control import Control, Node

_SECONDS = 2.0
_NEVER = "never seen"
_USED = (
    "Flower takes no key again that was once removed; the site needs a new one, in a new folder. Or end the server and "
    "delete `superlink.db`, `superlink.db-wal` and `superlink.db-shm` in its folder `state`: all sites are registered "
    "anew from their keys, and deployments go on"
)


@dataclass(frozen=True)
class SiteState:
    """What the server knows about a site.

    Args:
        name: of the site.
        state: online, offline or never seen.
        since: when it came online, or was last heard from; ISO text, empty if never.
    """

    name: str
    state: str
    since: str


@dataclass
class Registry:
    """Registers and unregisters sites.

    Args:
        hub: the server's folder.
        control: of the SuperLink.
        say: gets one line for each event.
        clock: monotonic seconds.
    """

    hub: Hub
    control: Control
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _next: float = field(default=0.0, init=False)
    _problems: Mapping[str, str] = field(default_factory=dict, init=False)
    _states: dict[str, str] = field(default_factory=dict, init=False)

    def step(self) -> None:
        """Brings the list up to date, every two seconds.

        Raises:
            LinkError: the SuperLink is not up.
        """
        if self.clock() < self._next:
            return
        keys = read_keys(self.hub.sites)
        nodes, refused = self._update(keys)
        problems = {**keys.problems, **refused}
        for name, problem in problems.items():
            if self._problems.get(name) != problem:
                self.say(f"{name} registers no site: {problem}")
        self._problems = problems
        states = [_state(name, nodes[key]) for name, key in keys.registered.items() if key in nodes]
        for site in states:
            if self._states.get(site.name, _NEVER) != site.state:
                self.say(f"site {site.name!r} is {site.state}")
            self._states[site.name] = site.state
        write_file(self.hub.presence, json.dumps({"sites": [asdict(site) for site in states], "problems": problems}))
        self._next = self.clock() + _SECONDS

    def _update(self, keys: Keys) -> tuple[Mapping[bytes, Node], Mapping[str, str]]:
        """Registers new keys, unregisters those that are gone.

        Returns:
            The nodes by key, and why a file could not be registered, by its name.
        """
        nodes = {node.key: node for node in self.control.nodes()}
        refused: dict[str, str] = {}
        missing = set(keys.registered.values()) - nodes.keys()
        # What Flower forgets it never takes again, so a key stays as long as any file has it.
        gone = nodes.keys() - keys.registered.values() - keys.disputed
        for name, key in keys.registered.items():
            if key not in missing:
                continue
            try:
                self.control.register(name, key)
                self.say(f"site {name!r} is registered")
            except RefusedError:
                refused[f"{name}{SUFFIX}"] = _USED
        for key in sorted(gone):
            self.control.unregister(nodes[key])
            self.say(f"site {nodes[key].name!r} is no longer registered")
        return ({node.key: node for node in self.control.nodes()} if missing or gone else nodes), refused


def _state(name: str, node: Node) -> SiteState:
    return SiteState(name, node.status if node.status in ("online", "offline") else _NEVER, node.since)
