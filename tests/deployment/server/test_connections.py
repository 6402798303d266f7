"""Which connections to the public port are closed: those on which nothing is asked, and the oldest of them first."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fedelta.deployment.server.connections import Doorkeeper


@dataclass(eq=False)
class Line:
    """A connection."""

    is_silent: bool = True
    is_open: bool = True

    def close(self) -> None:
        self.is_open = False


def opened(doorkeeper: Doorkeeper, *lines: Line, seconds: float = 0.0) -> list[bool]:
    """Which lines are open after all were opened in this order, and `seconds` more."""

    async def open_all() -> None:
        for line in lines:
            doorkeeper.opened(line)
        await asyncio.sleep(seconds)

    asyncio.run(open_all())
    return [line.is_open for line in lines]


def test_strangers_who_ask_for_nothing_make_room_for_a_newcomer_the_oldest_first():
    lines = [Line(is_silent=False), Line(), Line(), Line()]
    assert opened(Doorkeeper(max_connections=3), *lines) == [True, False, True, True]


def test_a_connection_with_requests_is_never_closed_for_another_one():
    lines = [Line(is_silent=False), Line(is_silent=False), Line()]
    assert opened(Doorkeeper(max_connections=2), *lines) == [True, True, False]


def test_a_closed_connection_does_not_count():
    doorkeeper, first, second = Doorkeeper(max_connections=1), Line(), Line()
    assert opened(doorkeeper, first) == [True]
    doorkeeper.closed(first)
    assert opened(doorkeeper, second) == [True]


def test_a_connection_on_which_no_request_comes_is_closed_after_a_while():
    lines = [Line(), Line(is_silent=False)]
    assert opened(Doorkeeper(silent_seconds=0.01), *lines, seconds=0.05) == [False, True]
