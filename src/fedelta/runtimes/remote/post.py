"""Talks to many sites at the same time: sends, waits as long as each site may take, sends again what was lost.

What is said to one site is a *talk*: a generator that yields the messages to send, gets each answer, and returns the
result. `Post.exchange` runs the talks of several sites side by side. If a site begins a new session, what it was sent
may be lost, and its talk begins anew; sites give the same answer to the same message. A talk ends without a result, as
a `Miss`, if the site is away, late, at work for an earlier round, does not fit, or fails again and again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from fedelta.errors import FedeltaError, LinkError, PayloadError
from fedelta.federation.records import SiteState
from fedelta.runtimes.remote.book import Book, Debt
from fedelta.runtimes.remote.clock import Clock
from fedelta.runtimes.remote.link import Link, Receipt
from fedelta.runtimes.remote.messages import Message, packed_bytes
from fedelta.runtimes.remote.settings import Deployment

T = TypeVar("T")
Talk = Generator[Message, Message, T]

_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.05, 0.5, 1.3  # seconds between looks for answers
_BETWEEN_LOOKS = 1.0  # seconds: a look at who is connected reads the engine's database
_MAX_FAILURES = 3  # a program that was killed once is started again; one that dies each time will do so again
_RETRY_SECONDS = 1.0
_LONG_CALL = 2.0  # seconds


class MisfitError(FedeltaError):
    """A site does not fit the run; raised in a talk."""


@dataclass(frozen=True)
class Miss:
    """Why a talk has no result.

    Args:
        state: what the site did instead.
        reason: in words.
        sent: kinds of the messages that were sent to it.
    """

    state: SiteState
    reason: str
    sent: frozenset[str] = frozenset()


@dataclass
class Traffic:
    """What travelled to and from a site since it was last asked for.

    Args:
        downlink_bytes: of the messages to it.
        uplink_bytes: of its answers.
        seconds: of the last exchange.
    """

    downlink_bytes: int = 0
    uplink_bytes: int = 0
    seconds: float | None = None


@dataclass
class _Errand(Generic[T]):
    """A talk under way.

    Args:
        start: begins the talk, also anew.
        began: when the errand began.
        at_most: seconds after which it ends.
        session: of the site when its talk began.
        talk: the talk.
        message: to be answered next.
        ticket: for the answer to `message`; None unless it was sent.
        sent_at: when it was sent.
        deadline: when the wait for an answer ends; None as long as the message was not sent.
        free_at: when the message may be sent at the earliest.
        num_failures: messages that ended without an answer although the site was connected.
        failure: the last of these, in words.
        sent: kinds of the messages that were sent.
    """

    start: Callable[[], Talk[T]]
    began: float
    at_most: float
    session: str = ""
    talk: Talk[T] = field(init=False)
    message: Message = field(init=False)
    ticket: str | None = None
    sent_at: float = 0.0
    deadline: float | None = None
    free_at: float = 0.0
    num_failures: int = 0
    failure: str = ""
    sent: set[str] = field(default_factory=set)


class Post:
    """Exchanges messages with sites.

    Args:
        link: carries messages.
        settings: how long to wait.
        clock: how time passes.

    Attributes:
        book: what is known about each site.
        traffic: site to what travelled.
    """

    def __init__(self, link: Link, settings: Deployment, clock: Clock = Clock()) -> None:  # noqa: B008 a frozen value
        self._link, self._settings, self._clock = link, settings, clock
        self.book = Book(settings, clock)
        self.traffic: dict[str, Traffic] = {}
        self._looked_at: float | None = None
        self._outage = 0.0  # seconds in which the engine could not be reached: no site's fault
        self._failed_at: float | None = None
        self._unreachable_since: float | None = None

    @property
    def now(self) -> float:
        """Seconds of the clock by which sites are judged."""
        return self._clock.seconds() - self._outage

    def pause(self, seconds: float) -> None:
        """Waits."""
        self._clock.sleep(seconds)

    def look(self, *, again: bool = False) -> None:
        """Sees who is connected, at most once a second unless `again`.

        Raises:
            LinkError: the engine has not been reached for longer than a whole round may take.
        """
        if not again and self._looked_at is not None and self.now - self._looked_at < _BETWEEN_LOOKS:
            return
        presence = self._reach(self._link.presence)
        if presence is not None:
            self._looked_at = self.now
            self.book.observe(presence, self.now)

    def exchange(
        self, talks: Mapping[str, Callable[[], Talk[T]]], at_most: float = math.inf
    ) -> Iterator[tuple[str, T | Miss]]:
        """Runs the talks of several sites, and yields each site's result when it is there.

        Args:
            talks: site to what begins its talk.
            at_most: seconds after which no site is waited for any more, even if its patience is longer.
        """
        self.look(again=True)
        errands: dict[str, _Errand[T]] = {}
        for site, start in talks.items():
            if (miss := self._excuse(site)) is not None:
                yield site, miss
                continue
            errands[site] = errand = _Errand(start, self.now, at_most)
            if (result := self._begin(site, errand)) is not None:
                yield site, _with_sent(result, errands.pop(site).sent)
        pause = _FIRST_PAUSE
        while errands:
            receipts = self._receive(errands)
            for site, receipt in receipts:
                if (result := self._read(site, errands[site], receipt)) is not None:
                    yield site, _with_sent(result, errands.pop(site).sent)
            self.look()
            for site, errand in list(errands.items()):
                if (result := self._go_on(site, errand)) is not None:
                    yield site, _with_sent(result, errands.pop(site).sent)
            if errands:
                pause = _FIRST_PAUSE if receipts else min(_LONGEST_PAUSE, pause * _GROWTH)
                self.pause(pause)

    def _excuse(self, site: str) -> Miss | None:
        """Why a site need not be asked in this round; None if it is asked."""
        entry, debt = self.book.of(site), self.book.of(site).debt
        if entry.is_refused:
            return Miss("refused", entry.reason)
        if not entry.presence.is_online and entry.state == "away":
            return Miss("away", entry.reason)
        if debt is not None and self.now >= debt.sent_at + self._settings.round_seconds:
            return self._busy(debt)
        return None

    def _go_on(self, site: str, errand: _Errand[T]) -> T | Miss | None:
        """Sends what is to be sent; gives what the errand has ended with, if its time is up."""
        presence = self.book.of(site).presence
        is_new = presence.is_online and presence.session != errand.session
        if is_new and (result := self._begin(site, errand)) is not None:
            return result
        self._send(site, errand)
        return self._overdue(site, errand)

    def _busy(self, debt: Debt) -> Miss:
        return Miss("busy", f"it has not answered a message for {self.now - debt.sent_at:.0f} s")

    def _begin(self, site: str, errand: _Errand[T]) -> T | Miss | None:
        """Begins a talk, also anew: a new session may not have what an earlier one was sent."""
        errand.talk, errand.session = errand.start(), self.book.of(site).presence.session
        return self._step(site, errand, errand.talk.__next__)

    def _step(self, site: str, errand: _Errand[T], step: Callable[[], Message]) -> T | Miss | None:
        """Goes on with a talk up to its next message; gives its result if it has ended."""
        errand.ticket = errand.deadline = None
        try:
            errand.message = step()
        except StopIteration as end:
            self._of(site).seconds = self.now - errand.began
            result: T = end.value
            return result
        except MisfitError as error:
            self.book.refuse(site, error.message)
            return Miss("refused", error.message)
        except PayloadError as error:
            return Miss("failed", error.message)
        size, limit = packed_bytes(errand.message), self._settings.max_message_bytes
        if size > limit:
            return Miss("failed", f"a message to it has {size} bytes, more than `deployment.max_message_mib` allows")
        return None

    def _send(self, site: str, errand: _Errand[T]) -> None:
        """Sends a site the message of its talk, unless that was done, or the site cannot take it now."""
        entry, message = self.book.of(site), errand.message
        if (
            errand.ticket is not None
            or entry.debt is not None
            or not entry.presence.is_online
            or self.now < errand.free_at
        ):
            return
        # Twice the deadline: a late answer is not used, but says that the site is well and free again.
        lifetime = 2 * self._settings.round_seconds
        try:
            errand.ticket = self._link.send(site, message, lifetime)
        except LinkError as error:
            errand.failure, errand.free_at = error.message, self.now + _RETRY_SECONDS
            return
        self._of(site).downlink_bytes += packed_bytes(message)
        errand.sent_at = self.now
        errand.sent.add(message.kind)
        if errand.deadline is None:
            errand.deadline = self.now + self.book.patience(site, message.kind)

    def _receive(self, errands: Mapping[str, _Errand[T]]) -> list[tuple[str, Receipt]]:
        """What has come for the errands, by site; answers that came too late free their sites."""
        debts = self.book.debts
        of_ticket = {errand.ticket: site for site, errand in errands.items() if errand.ticket is not None}
        receipts = self._reach(lambda: self._link.receive({*of_ticket, *debts})) or ()
        for receipt in receipts:
            if receipt.ticket in debts:
                site, debt = debts[receipt.ticket]
                self.book.settle(site)
                self._of(site).uplink_bytes += receipt.num_bytes
                if receipt.answer is not None:
                    self.book.took(site, debt.kind, self.now - debt.sent_at)
        for site, debt in debts.values():
            # Nothing can come any more: the message was lost in a way that nobody noticed.
            if self.now >= debt.sent_at + 2 * self._settings.round_seconds:
                self.book.settle(site)
        return [(of_ticket[receipt.ticket], receipt) for receipt in receipts if receipt.ticket in of_ticket]

    def _read(self, site: str, errand: _Errand[T], receipt: Receipt) -> T | Miss | None:
        """Goes on with a talk after an answer; gives what it has ended with."""
        self._of(site).uplink_bytes += receipt.num_bytes
        answer = receipt.answer
        if answer is None:
            return self._failed(site, errand, receipt)
        self.book.took(site, errand.message.kind, self.now - errand.sent_at)
        return self._step(site, errand, lambda: errand.talk.send(answer))

    def _failed(self, site: str, errand: _Errand[T], receipt: Receipt) -> Miss | None:
        """Notes a message that ended without an answer; a `Miss` if that happens again and again."""
        errand.ticket = None
        errand.failure = receipt.failure or "no reason was given"
        self.look(again=True)
        if not self.book.of(site).presence.is_online:
            errand.deadline = None  # the wait begins anew when it is back
            return None
        errand.num_failures += 1
        errand.free_at = self.now + errand.num_failures * _RETRY_SECONDS
        if errand.num_failures < _MAX_FAILURES:
            return None
        return Miss("failed", f"{errand.num_failures} messages ended without an answer; the last: {errand.failure}")

    def _overdue(self, site: str, errand: _Errand[T]) -> Miss | None:
        """The miss of a site whose time is up; None if there is time left."""
        entry, settings, now = self.book.of(site), self._settings, self.now
        waited = now - errand.began
        if waited >= errand.at_most:
            return Miss("late", f"it has not answered within {waited:.0f} s")
        if entry.offline_since is not None:
            is_over = now >= entry.offline_since + settings.min_grace_seconds or waited >= settings.round_seconds
            return self._away(site, errand) if is_over else None
        if (debt := entry.debt) is not None:
            at_work = errand.began - debt.sent_at
            is_over = waited >= self.book.patience(site, debt.kind, at_work)
            return self._busy(debt) if is_over or now >= debt.sent_at + settings.round_seconds else None
        if waited >= 2 * settings.round_seconds:  # connected anew again and again
            return Miss("failed", f"it has not answered for {waited:.0f} s{_because(errand.failure)}")
        if errand.deadline is None:
            is_over = waited >= settings.round_seconds
            return Miss("failed", f"no message can be sent to it{_because(errand.failure)}") if is_over else None
        if now < errand.deadline:
            return None
        if errand.ticket is None:
            return Miss("failed", f"its messages end without an answer{_because(errand.failure)}")
        self.book.owes(site, Debt(errand.ticket, errand.message.kind, errand.sent_at))
        return Miss("late", f"it has not answered within {now - errand.sent_at:.0f} s")

    def _away(self, site: str, errand: _Errand[T]) -> Miss:
        if errand.ticket is not None:  # if only its line was cut, it may be at work when it is back
            self.book.owes(site, Debt(errand.ticket, errand.message.kind, errand.sent_at))
        return Miss("away", f"its connection is lost{_because(errand.failure)}")

    def _of(self, site: str) -> Traffic:
        return self.traffic.setdefault(site, Traffic())

    def _reach(self, call: Callable[[], T]) -> T | None:
        """What `call` returns; None while the engine cannot be reached.

        The time of an outage counts for no site, nor does that of a long call: it repeats itself while the engine is
        restarted, or carries much.
        """
        before = self._clock.seconds()
        if self._failed_at is not None:
            self._outage += before - self._failed_at
        try:
            result = call()
        except LinkError:
            after = self._clock.seconds()
            self._outage += after - before
            self._failed_at = after
            if self._unreachable_since is None:
                self._unreachable_since = before
            if after - self._unreachable_since > self._settings.round_seconds:
                raise
            return None
        self._failed_at = self._unreachable_since = None
        if (taken := self._clock.seconds() - before) > _LONG_CALL:
            self._outage += taken
        return result


def _with_sent(result: T | Miss, sent: Collection[str]) -> T | Miss:
    return replace(result, sent=frozenset(sent)) if isinstance(result, Miss) else result


def _because(failure: str) -> str:
    return f": {failure}" if failure else ""
