"""A `Link` to sites in this process, on a clock that only counts: sites that work, dawdle, vanish and come back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from fedelta.errors import LinkError
from fedelta.runtimes.remote.clock import Clock
from fedelta.runtimes.remote.link import Presence, Receipt
from fedelta.runtimes.remote.messages import Message, pack, unpack

Handler = Callable[[Message], Message]


@dataclass
class LocalSite:
    """A site that works on one message after the other.

    Args:
        handler: gives the answer to a message.
        seconds: that it takes for a message, of every kind or by kind.
        is_online: whether it is connected.
        session: that it is in.
    """

    handler: Handler
    seconds: float | Mapping[str, float] = 1.0
    is_online: bool = True
    session: int = 1
    free_at: float = 0.0

    def takes(self, kind: str) -> float:
        return self.seconds if isinstance(self.seconds, int | float) else self.seconds.get(kind, 1.0)

    def restart(self) -> None:
        """It is back, in a new session, and has lost what it was sent."""
        self.is_online, self.session, self.free_at = True, self.session + 1, 0.0


@dataclass
class _Sent:
    site: str
    message: Message
    session: int
    due: float
    expires: float


@dataclass
class LocalLink:
    """Sites by name; time passes when somebody sleeps.

    Args:
        sites: by name.
        is_down: whether the engine cannot be reached.
        reports_lost: whether a message that a site has lost ends with a failure, as Flower's error 5, or never.

    Attributes:
        log: site, kind and time of each message sent.
        at: time to what happens then.
    """

    sites: dict[str, LocalSite]
    is_down: bool = False
    reports_lost: bool = False
    seconds: float = 0.0
    log: list[tuple[str, str, float]] = field(default_factory=list)
    at: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    failures: dict[str, list[str]] = field(default_factory=dict)
    _sent: dict[str, _Sent] = field(default_factory=dict)
    _num_sent: int = 0

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.seconds, self.sleep, lambda: datetime(2026, 1, 1, tzinfo=UTC) + self.elapsed)

    @property
    def elapsed(self) -> timedelta:
        return timedelta(seconds=self.seconds)

    def sleep(self, seconds: float) -> None:
        until = self.seconds + seconds
        while due := sorted((event for event in self.at if event[0] <= until), key=lambda event: event[0]):
            self.at.remove(due[0])
            self.seconds = max(self.seconds, due[0][0])
            due[0][1]()
        self.seconds = max(self.seconds, until)

    def asked(self, site: str, kind: str = "train") -> list[float]:
        """The times at which a site was sent messages of a kind."""
        return [time for name, sent, time in self.log if (name, sent) == (site, kind)]

    def presence(self) -> Mapping[str, Presence]:
        self._require_up()
        return {name: Presence(site.is_online, str(site.session)) for name, site in self.sites.items()}

    def send(self, site: str, message: Message, seconds: float) -> str:
        self._require_up()
        state, self._num_sent = self.sites[site], self._num_sent + 1
        self.log.append((site, message.kind, self.seconds))
        state.free_at = max(self.seconds, state.free_at) + state.takes(message.kind)
        message = unpack(*pack(message), 2**30)
        ticket = f"ticket {self._num_sent}"
        self._sent[ticket] = _Sent(site, message, state.session, state.free_at, self.seconds + seconds)
        return ticket

    def receive(self, tickets: Collection[str]) -> list[Receipt]:
        self._require_up()
        receipts = [receipt for ticket in sorted(tickets) if (receipt := self._receipt(ticket)) is not None]
        for receipt in receipts:
            del self._sent[receipt.ticket]
        return receipts

    def _receipt(self, ticket: str) -> Receipt | None:
        sent = self._sent.get(ticket)
        if sent is None or self.seconds > sent.expires:
            return None
        site = self.sites[sent.site]
        if sent.session != site.session or not site.is_online:
            return Receipt(ticket, None, "the site is not available") if self.reports_lost else None
        if self.seconds < sent.due:
            return None
        if texts := self.failures.get(sent.site):
            return Receipt(ticket, None, texts.pop(0))
        text, packed = pack(site.handler(sent.message))
        return Receipt(ticket, unpack(text, packed, 2**30), num_bytes=len(text) + len(packed))

    def _require_up(self) -> None:
        if self.is_down:
            raise LinkError("the engine cannot be reached")
