"""The link over Flower's grid: messages to sites by name, answers by the id of the message that they answer.

A site is its registered key. Flower checks with every call that a node has the key it registered with, and that an
answer comes from the node that was asked; so who an answer is from follows from the ticket, never from the answer.
While the SuperLink is away the grid repeats its calls until it is back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid

from fedelta.deployment.server.keys import read_keys
from fedelta.errors import LinkError, PayloadError
from fedelta.runtimes.flower.envelope import travelled_bytes, unwrap, wrap
from fedelta.runtimes.remote.answers import one_line
from fedelta.runtimes.remote.link import Presence, Receipt
from fedelta.runtimes.remote.messages import Message

MESSAGE_TYPE = "query"

T = TypeVar("T")
_PULL_SECONDS = 1.0  # for a look whether there is an answer, and for fetching a usual one

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
    _pulls: dict[str, Future[Iterable[FlowerMessage]]] = field(default_factory=dict, init=False)  # under way, by ticket

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
        """See `Link.receive`.

        Each ticket is asked for by itself, so that an answer that cannot even be read costs no other site its own; and
        beside this thread, because Flower waits for the rest of an answer that has come in part, for minutes if its
        site was killed meanwhile.
        """
        fresh = sorted(set(tickets) - self._pulls.keys())
        for ticket in fresh:
            self._pulls[ticket] = _beside(partial(self.grid.pull_messages, [ticket]))
        wait([self._pulls[ticket] for ticket in fresh], _PULL_SECONDS)
        receipts: list[Receipt] = []
        unreached: LinkError | None = None
        for ticket in [ticket for ticket, pull in self._pulls.items() if pull.done()]:
            try:
                receipts += self._pulled(ticket, self._pulls.pop(ticket))
            except LinkError as error:
                unreached = error
        if unreached is not None and not receipts:  # what has come will not come again
            raise unreached
        return [receipt for receipt in receipts if receipt.ticket in tickets]

    def _pulled(self, ticket: str, pull: Future[Iterable[FlowerMessage]]) -> list[Receipt]:
        """The receipt for a ticket, if there is one, from a call that has ended."""
        try:
            answers = list(self._call(pull.result))
        except LinkError:
            raise
        except Exception as error:  # noqa: BLE001 Flower builds objects from bytes that a site may have made up
            reason = f"the site's answer cannot be read: an error of the kind {type(error).__name__}"
            return [Receipt(ticket, None, reason)]
        return [self._receipt(ticket, answer) for answer in answers[:1]]

    def _receipt(self, ticket: str, answer: FlowerMessage) -> Receipt:
        """The answer, or why it is none; the ticket that was asked for says whom it is from, not the answer."""
        if answer.metadata.reply_to_message_id != ticket:
            return Receipt(ticket, None, "the site's answer says that it is for another message")
        if answer.has_error():
            known = _FAILURES.get(answer.error.code, f"Flower's error {answer.error.code}")
            reason = one_line({"reason": answer.error.reason or ""}, "reason")
            return Receipt(ticket, None, f"{known}: {reason}" if reason else known)
        try:
            message = unwrap(answer.content, self.max_bytes)
        except (PayloadError, ValueError) as error:  # ValueError: no content
            reason = error.message if isinstance(error, PayloadError) else str(error)
            return Receipt(ticket, None, f"the site's answer cannot be used: {reason}")
        return Receipt(ticket, message, num_bytes=travelled_bytes(answer.content))

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except httpx.HTTPError as error:
            raise LinkError(f"Flower's SuperLink does not take a call: {error}") from error


def _beside(call: Callable[[], T]) -> Future[T]:
    """The result of a call in a thread that does not keep this process alive."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001 raised where the result is read
            result.set_exception(error)

    threading.Thread(target=run, name="pull", daemon=True).start()
    return result
