"""The protocol between the runtime and an engine that carries messages, such as Flower."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedelta.runtimes.remote.messages import Message


@dataclass(frozen=True)
class Presence:
    """Whether a registered site is connected.

    Args:
        is_online: whether the engine has heard from it lately.
        session: changes when the site's node starts anew; a message that an earlier session received may be lost.
    """

    is_online: bool
    session: str = ""


@dataclass(frozen=True)
class Receipt:
    """The answer to one message, or why there is none.

    Args:
        ticket: what `send` returned for the message; says which site the answer is from.
        answer: of the site; None if there is none.
        failure: what the engine says about a message without an answer, for people.
        num_bytes: length of the answer as it travelled.
    """

    ticket: str
    answer: Message | None
    failure: str = ""
    num_bytes: int = 0


class Link(Protocol):
    """Carries messages to sites and answers back. It knows who an answer is from; the answer itself is not trusted."""

    def presence(self) -> Mapping[str, Presence]:
        """Every registered site by name."""

    def send(self, site: str, message: Message, seconds: float) -> str:
        """Sends a message to a site and returns a ticket for its answer.

        Args:
            site: name of a registered site.
            message: to be sent.
            seconds: after which the answer is no longer waited for.

        Raises:
            LinkError: the engine does not take the message at present.
        """

    def receive(self, tickets: Collection[str]) -> Sequence[Receipt]:
        """The answers to these tickets that have come since the last call; does not wait."""
