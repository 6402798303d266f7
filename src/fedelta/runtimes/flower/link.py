"""The link over Flower's grid: messages to sites by name, answers by the id of the message that they answer.

A site is its registered key. Flower checks with every call that a node has the key it registered with, and that an
answer comes from the node that was asked; so who an answer is from follows from the ticket, never from the answer.
While the SuperLink is away the grid repeats its calls until it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid

from fedelta.deployment.server.keys import read_keys
from fedelta.errors import LinkError, PayloadError
from fedelta.runtimes.flower.envelope import travelled_bytes, unwrap, wrap
from fedelta.runtimes.remote.link import Presence, Receipt
from fedelta.runtimes.remote.messages import Message

MESSAGE_TYPE = "query"

T = TypeVar("T")

# Flower's error codes (flwr/common/constant.py: ErrorCode) in our words.
_FAILURES = {
    1: "the site cannot load its part of fedelta",
    2: "the site's part of fedelta raised an error",
    3: "the message was lost or is too old",
    4: "the answer was lost or came too late",
    5: "the site is not connected",
    7: "the site cannot read what was submitted",
    8: "the site's process died while it worked",
}


@dataclass
class GridLink:
    """A `Link` over a `Grid`.

    Args:
        grid: of the ServerApp.
        sites: the folder with the public key of each registered site, `NAME.pub`.
        max_bytes: of an answer's blobs.
    """

    grid: Grid
    sites: Path
    max_bytes: int
    _nodes: dict[str, int] = field(default_factory=dict, init=False)

    def presence(self) -> Mapping[str, Presence]:
        """See `Link.presence`."""
        nodes = {node.public_key: node for node in self._call(self.grid.get_nodes)}
        known: dict[str, Presence] = {}
        for name, key in read_keys(self.sites).registered.items():
            node = nodes.get(key)
            known[name] = Presence(False) if node is None else Presence(True, node.last_activated_at)
            if node is not None:
                self._nodes[name] = node.node_id
        return known

    def send(self, site: str, message: Message, seconds: float) -> str:
        """See `Link.send`."""
        if site not in self._nodes:
            self.presence()
        if site not in self._nodes:
            raise LinkError(f"site {site!r} is not connected.")
        request = FlowerMessage(wrap(message), self._nodes[site], MESSAGE_TYPE, ttl=seconds)
        tickets = list(self._call(lambda: self.grid.push_messages([request])))
        if not tickets or not tickets[0]:
            del self._nodes[site]  # perhaps it was registered anew, with another id
            raise LinkError(f"Flower does not take a message to site {site!r}.")
        return str(tickets[0])

    def receive(self, tickets: Collection[str]) -> Sequence[Receipt]:
        """See `Link.receive`."""
        if not tickets:
            return []
        answers = self._call(lambda: self.grid.pull_messages(sorted(tickets)))
        return [receipt for answer in answers if (receipt := self._receipt(answer)).ticket in tickets]

    def _receipt(self, answer: FlowerMessage) -> Receipt:
        """The answer, or why it is none. Of an error the sender is the SuperLink, so only the ticket names the site."""
        ticket = answer.metadata.reply_to_message_id
        if answer.has_error():
            known = _FAILURES.get(answer.error.code, f"Flower's error {answer.error.code}")
            reason = (answer.error.reason or "").strip()
            return Receipt(ticket, None, f"{known}: {reason}" if reason else known)
        try:
            message = unwrap(answer.content, self.max_bytes)
        except PayloadError as error:
            return Receipt(ticket, None, f"the site's answer cannot be used: {error.message}")
        return Receipt(ticket, message, num_bytes=travelled_bytes(answer.content))

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except httpx.HTTPError as error:
            raise LinkError(f"Flower's SuperLink does not take a call: {error}") from error
