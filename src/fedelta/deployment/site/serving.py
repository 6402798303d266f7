"""The loop of a site: it joins, asks for messages, has them answered, and joins again after a failure.

It ends only if it cannot join at first until a person corrects something. Once it has joined it tries for ever: the
server may be away for a day.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from fedelta.deployment.site.diagnosis import KeyRefusedError, clock_problem
from fedelta.deployment.site.session import Session
from fedelta.errors import FedeltaError, InputError, LinkError, PayloadError
from fedelta.runtimes.remote.messages import REFUSED, Message

# Waiting for messages costs at most 5 % of the time that it takes, and three requests a second right after one.
_SHARE, _LEAST, _MOST = 0.05, 0.3, 3.0
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 10.0
_KEY_PAUSE = 10.0  # the server looks for new keys every few seconds; a dead session is forgotten after 40
_REMINDER_SECONDS = 600.0
_SLOW_SECONDS = 10.0  # longer, and the server was away or the line is slow

Show = Callable[[str], None]
Ask = Callable[[Message], Message]


class Delivered(Protocol):
    """A message that came."""

    @property
    def message(self) -> Message:
        """Of the server."""


class Door(Protocol):
    """The connection with the server; see `runtimes.flower.connection`."""

    @property
    def clock_offset(self) -> float:
        """Seconds that the server's clock is ahead."""

    def join(self, previous: int | None = None) -> int:
        """Connects the site."""

    def receive(self) -> Any:  # Any: a `Delivered`, which `answer` takes back
        """The next message; None if there is none."""

    def answer(self, delivery: Any, answer: Message) -> bool:
        """Sends an answer; whether it was still wanted."""


@dataclass
class SiteLoop:
    """Serves one site until it is interrupted.

    Args:
        door: the connection with the server.
        ask: has a message answered.
        session: notes that the site is connected.
        show: takes one line for each event.
        sleep: waits so many seconds.
    """

    door: Door
    ask: Ask
    session: Session
    show: Show
    sleep: Callable[[float], None] = time.sleep

    def serve(self) -> None:
        """Joins, and answers messages for ever.

        Raises:
            InputError: the site cannot join until a person corrects something.
        """
        first = True
        while True:
            self._join(first)
            first = False
            self._answer_all()

    def _join(self, first: bool) -> None:
        """Returns when the site is connected."""
        said, pause = _Notice(self.show), _FIRST_PAUSE
        while True:
            try:
                number = self.door.join(self.session.lost())
            except KeyRefusedError as error:
                said(_waiting(error))
                self.sleep(_KEY_PAUSE)
            except (LinkError, InputError) as error:
                if first and isinstance(error, InputError):
                    raise
                said(_again(error))
                self.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)
            else:
                with suppress(OSError):  # a full disk costs the next process a wait, not this one its life
                    self.session.begin(number)
                if (problem := clock_problem(self.door.clock_offset)) is not None:
                    self.show(problem)
                self.show("joined; waiting for messages")
                return

    def _answer_all(self) -> None:
        """Answers messages until the server does not accept the site any more, or an answer was not delivered.

        Of such an answer the server may have the beginning, and wait for the rest, which it does not take any more. A
        site that has joined anew is asked again.
        """
        said, pause, begin = _Notice(self.show), _FIRST_PAUSE, time.monotonic()
        while True:
            try:
                delivery = self.door.receive()
            except KeyRefusedError:
                self.show("the server does not accept this site's key any more")
                return
            except PayloadError as error:
                self.show(f"a message was refused: {error.message}")
                continue
            except (LinkError, InputError) as error:
                said(_again(error))
                self.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)
                continue
            if said.is_open:
                said.close("the server is reached again")
            pause = _FIRST_PAUSE
            if delivery is None:
                self.sleep(min(_MOST, max(_LEAST, _SHARE * (time.monotonic() - begin))))
                continue
            if not self._answer(delivery):
                return
            begin = time.monotonic()

    def _answer(self, delivery: Delivered) -> bool:
        """Has a message answered; returns whether the server knows what has become of it."""
        request, begin = delivery.message, time.monotonic()
        self.show(request_line(request))
        try:
            answer = self.ask(request)
        except FedeltaError as error:
            answer = Message(REFUSED, {"reason": error.message, "hint": error.hint or ""})
        except OSError as error:  # no memory for a process, no space for a file
            reason = f"the site cannot work: {error.strerror or error}"
            answer = Message(REFUSED, {"reason": reason, "hint": "see the site's log."})
        self.show(answer_line(request, answer, time.monotonic() - begin))
        begin = time.monotonic()
        try:
            if not self.door.answer(delivery, answer):
                self.show("the server did not wait for this answer; the site takes part again in the next round")
            elif (seconds := time.monotonic() - begin) > _SLOW_SECONDS:
                self.show(f"the answer took {seconds:.0f} s to deliver")
        except (LinkError, InputError) as error:
            self.show(f"the answer was not delivered: {error.message} Joining anew.")
            return False
        return True


class _Notice:
    """Says what goes wrong once, and again after some minutes, not with every attempt."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._text = ""
        self._end = 0.0

    @property
    def is_open(self) -> bool:
        """Whether something went wrong since the last `close`."""
        return bool(self._text)

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if text != self._text or now > self._end:
            self._show(text)
            self._text, self._end = text, now + _REMINDER_SECONDS

    def close(self, text: str) -> None:
        """Says that it is over."""
        self._show(text)
        self._text = ""


def request_line(request: Message) -> str:
    """A line about a message that came."""
    return {
        "describe": "the server asks which clients are here",
        "prepare": "a run begins: model and data are loaded",
        "train": f"round {request.manifest.get('round')}: {_count(request)} to train",
        "evaluate": f"round {request.manifest.get('round')}: the model is measured on this site's data",
        "finish": "the run is over",
    }.get(request.kind, f"the server asks for {request.kind!r}")


def answer_line(request: Message, answer: Message, seconds: float) -> str:
    """A line about the answer to a message."""
    if answer.kind == REFUSED:
        hint = answer.manifest.get("hint")
        return f"refused: {answer.manifest.get('reason')}" + (f" ({hint})" if hint else "")
    if answer.kind != "trained":
        return f"answered after {seconds:.1f} s"
    clients = [client for client in _clients(answer) if client.get("fault") is None]
    examples = sum(number for client in clients if isinstance(number := client.get("num_examples"), int))
    faults = [
        f"; client {client.get('id')}: {fault.get('reason')}"
        for client in _clients(answer)
        if isinstance(fault := client.get("fault"), dict)
    ]
    return (
        f"round {request.manifest.get('round')}: trained on {examples:,} examples in {seconds:.1f} s, "
        f"{answer.num_bytes:,} bytes go back{''.join(faults)}"
    )


def _clients(message: Message) -> list[dict[str, Any]]:
    clients = message.manifest.get("clients")
    return [client for client in clients if isinstance(client, dict)] if isinstance(clients, list) else []


def _count(message: Message) -> str:
    number = len(_clients(message))
    return "1 client" if number == 1 else f"{number} clients"


def _again(error: FedeltaError) -> str:
    return f"{error.message} Trying again." + (f" ({error.hint})" if error.hint else "")


def _waiting(error: KeyRefusedError) -> str:
    return (
        f"{error.message} Either it is not registered there: the server's operator copies this site's .pub file to "
        "HUB/sites. Or another process is connected with it, or was until a moment ago. The site waits."
    )
