"""Tells in `status.json` what a deployed run is doing, for those who follow it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedelta.federation.records import RoundOutcome
from fedelta.record.status import Status, write_status
from fedelta.runtimes.remote.clock import Clock
from fedelta.runtimes.remote.link import Link, Presence, Receipt
from fedelta.runtimes.remote.messages import Message
from fedelta.runtimes.remote.waiting import Waiting


@dataclass
class Announcer:
    """Writes the status of one run.

    Args:
        run: the directory.
        clock: for dates.
    """

    run: Path
    clock: Clock
    _last: Status = field(default=Status("running"), init=False)
    _before: Status = field(default=Status("running"), init=False)

    def say(self, status: Status) -> None:
        """Writes a status with the present time."""
        self._last = status
        write_status(self.run, replace(status, since=self.clock.now().isoformat(timespec="seconds")))

    def waits(self, waiting: Waiting) -> None:
        """Says who is waited for."""
        if self._last.state != "waiting":
            self._before = self._last
        sites = {**dict.fromkeys(waiting.present, "connected"), **dict.fromkeys(waiting.missing, "missing")}
        self.say(Status("waiting", str(waiting), sites=sites))

    def goes_on(self) -> None:
        """Says again what was said before the wait, if there was one."""
        if self._last.state == "waiting":
            self.say(self._before)

    def after_round(self, outcome: RoundOutcome, text: str) -> None:
        """Says what each site did in a round; `text` is what is to be said of all rounds."""
        self.say(Status("running", text, sites={site.site: site.state for site in outcome.sites}))


@dataclass(frozen=True)
class Announced:
    """A `Link` over which it shows that the server waits no more: it sends a message.

    Args:
        link: carries messages.
        announcer: of the run.
    """

    link: Link
    announcer: Announcer

    def presence(self) -> Mapping[str, Presence]:
        """See `Link.presence`."""
        return self.link.presence()

    def send(self, site: str, message: Message, seconds: float) -> str:
        """See `Link.send`."""
        self.announcer.goes_on()
        return self.link.send(site, message, seconds)

    def receive(self, tickets: Collection[str]) -> Sequence[Receipt]:
        """See `Link.receive`."""
        return self.link.receive(tickets)
