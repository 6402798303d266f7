"""What a server knows about each of its sites: connected, refused, at work, how long it takes; and how long to wait.

A site is known by its registered name; nothing that it says about itself changes whom the entry is about. Times are
seconds of the clock that `Post` keeps, which stands still while the engine that carries messages cannot be reached.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedelta.federation.records import SiteState
from fedelta.runtimes.remote.clock import Clock
from fedelta.runtimes.remote.link import Presence
from fedelta.runtimes.remote.settings import Deployment

_NUM_DURATIONS = 5  # rounds that count for a site's patience: an older one may be from before a change of its machine
# States with one word in common began when the first of them did.
_SAME_STATE = {"took part": "present", "not asked": "present", "late": "behind", "busy": "behind"}


@dataclass(frozen=True)
class Debt:
    """A message that a site has not answered in time, and may still be at work for.

    Args:
        ticket: for its answer.
        kind: of the message.
        sent_at: when it was sent.
    """

    ticket: str
    kind: str
    sent_at: float


@dataclass(frozen=True)
class Entry:
    """What is known about one site.

    Args:
        presence: as the engine sees it.
        offline_since: when it was first seen offline; None while it is online.
        state: what it did in the last round.
        since: when that began, ISO 8601 in UTC.
        since_round: number of the round in which it began.
        reason: why the site did not take part.
        described_in: the session in which it last said what it has; None if it must.
        ready_in: the session in which it was last prepared for the run; None if it must be.
        refused_in: the session in which it did not fit the run; None if it does.
        durations: kind of message to the seconds of the last answers.
        debt: a message that it may still be at work for.
    """

    presence: Presence = Presence(is_online=False)  # noqa: RUF009 a frozen value
    offline_since: float | None = None
    state: SiteState = "not asked"
    since: str = ""
    since_round: int = 0
    reason: str = ""
    described_in: str | None = None
    ready_in: str | None = None
    refused_in: str | None = None
    durations: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    debt: Debt | None = None

    @property
    def is_refused(self) -> bool:
        """Whether it has shown in this session that it does not fit the run."""
        return self.refused_in == self.presence.session

    @property
    def is_described(self) -> bool:
        """Whether it has said in this session what it has."""
        return self.described_in == self.presence.session

    @property
    def is_ready(self) -> bool:
        """Whether it was prepared in this session."""
        return self.ready_in == self.presence.session


class Book:
    """The entries of all sites.

    Args:
        settings: how long to wait.
        clock: for dates.
    """

    def __init__(self, settings: Deployment, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._entries: dict[str, Entry] = {}

    def of(self, site: str) -> Entry:
        """The entry of a site."""
        return self._entries.get(site, Entry())

    @property
    def names(self) -> list[str]:
        """Every registered site, ascending."""
        return sorted(self._entries)

    @property
    def available(self) -> list[str]:
        """The sites that are connected and fit the run, ascending."""
        entries = ((site, self.of(site)) for site in self.names)
        return [site for site, entry in entries if entry.presence.is_online and not entry.is_refused]

    @property
    def debts(self) -> dict[str, tuple[str, Debt]]:
        """Ticket to the site that owes an answer, and what it owes."""
        return {entry.debt.ticket: (site, entry.debt) for site, entry in self._entries.items() if entry.debt}

    def patience(self, site: str, kind: str, at_work: float = 0.0) -> float:
        """Seconds to wait for the answer to a message.

        Args:
            site: that is asked.
            kind: of the message.
            at_work: seconds for which the site has worked on an earlier message of this kind already.
        """
        settings, durations = self._settings, self.of(site).durations.get(kind, ())
        if not durations and not at_work:
            return settings.round_seconds
        slowest = max([*durations, at_work])
        return min(settings.round_seconds, max(settings.min_grace_seconds, settings.grace_factor * slowest))

    def observe(self, presence: Mapping[str, Presence], now: float) -> None:
        """Enters what the engine sees. A site in a new session owes no answer: its messages may be lost.

        A site that the engine no longer lists was removed from the register: it counts as offline.
        """
        for site in {*self._entries, *presence}:
            entry, current = self.of(site), presence.get(site, Presence(is_online=False))
            if not current.is_online:  # the session of a site that is offline may be unknown
                current = replace(current, session=entry.presence.session)
                since = now if entry.offline_since is None else entry.offline_since
                self._entries[site] = replace(entry, presence=current, offline_since=since)
                continue
            debt = entry.debt if current.session == entry.presence.session else None
            self._entries[site] = replace(entry, presence=current, offline_since=None, debt=debt)

    def note(self, site: str, state: SiteState, round: int, reason: str = "") -> None:
        """Enters what a site did in a round; the date stays if that is what it did before."""
        entry = self.of(site)
        goes_on = bool(entry.since) and _SAME_STATE.get(entry.state, entry.state) == _SAME_STATE.get(state, state)
        since = entry.since if goes_on else self._clock.now().isoformat(timespec="seconds")
        since_round = entry.since_round if goes_on else round
        self._entries[site] = replace(entry, state=state, since=since, since_round=since_round, reason=reason)

    def described(self, site: str) -> None:
        """Enters that a site said in its present session what it has, and that this fits the run."""
        self._change(site, described_in=self.of(site).presence.session)

    def ready(self, site: str) -> None:
        """Enters that a site was prepared for the run in its present session."""
        self._change(site, ready_in=self.of(site).presence.session, refused_in=None)

    def unready(self, site: str) -> None:
        """Enters that a site must be asked again what it has, and prepared, before it can work."""
        self._change(site, described_in=None, ready_in=None)

    def refuse(self, site: str, reason: str) -> None:
        """Enters that a site does not fit the run; it is not asked until it begins another session."""
        self._change(site, ready_in=None, refused_in=self.of(site).presence.session, reason=reason)

    def owes(self, site: str, debt: Debt) -> None:
        """Enters that a site has not answered in time."""
        self._change(site, debt=debt)

    def settle(self, site: str) -> None:
        """Enters that a site works on nothing any more."""
        self._change(site, debt=None)

    def took(self, site: str, kind: str, seconds: float) -> None:
        """Enters how long a site took for an answer."""
        durations = self.of(site).durations
        last = (*durations.get(kind, ()), seconds)[-_NUM_DURATIONS:]
        self._change(site, durations={**durations, kind: last})

    def as_record(self, sites: Collection[str]) -> dict[str, Any]:
        """What a restarted server needs to know about these sites, as JSON values."""
        return {
            site: {
                "state": entry.state,
                "since": entry.since,
                "since_round": entry.since_round,
                "reason": entry.reason,
                "ready_in": entry.ready_in,
                "durations": {kind: list(seconds) for kind, seconds in entry.durations.items()},
            }
            for site, entry in ((site, self.of(site)) for site in sorted(sites))
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """The inverse of `as_record`; what the engine sees at present stays."""
        for site, values in record.items():
            durations = {kind: tuple(seconds) for kind, seconds in values["durations"].items()}
            self._change(site, **{**values, "durations": durations})

    def _change(self, site: str, **values: Any) -> None:  # Any: fields of `Entry`
        self._entries[site] = replace(self.of(site), **values)
