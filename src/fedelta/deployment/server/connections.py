"""Connections to the public port: those that ask for nothing make room for those that do.

Everybody can open connections before any key is checked. Uvicorn keeps one for ever on which no whole request comes,
and counts it against `limit_concurrency`, so some hundred would keep every site out.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from functools import partial
from typing import Protocol

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
SILENT_SECONDS = 20.0  # a site sends its first request at once


class Open(Protocol):
    """An open connection."""

    @property
    def is_silent(self) -> bool:
        """Whether no whole request has come yet."""

    def close(self) -> None:
        """Closes it."""


class Doorkeeper:
    """Knows the open connections, and closes silent ones: after a while, and the oldest first where there are too many.

    Args:
        max_connections: at the same time.
        silent_seconds: for the first request of a connection.
    """

    def __init__(self, max_connections: int = MAX_CONNECTIONS, silent_seconds: float = SILENT_SECONDS) -> None:
        self._max_connections, self._silent_seconds = max_connections, silent_seconds
        self._open: dict[Open, None] = {}  # by age

    def opened(self, connection: Open) -> None:
        """Notes a new connection; closes the oldest silent one if there are too many, else the new one."""
        self._open[connection] = None
        asyncio.get_running_loop().call_later(self._silent_seconds, partial(self._close_silent, connection))
        if len(self._open) > self._max_connections:
            oldest = next((one for one in self._open if one.is_silent), connection)
            self.closed(oldest)
            oldest.close()

    def closed(self, connection: Open) -> None:
        """Notes that a connection is no longer there."""
        self._open.pop(connection, None)

    def _close_silent(self, connection: Open) -> None:
        if connection in self._open and connection.is_silent:
            connection.close()


def watched(doorkeeper: Doorkeeper) -> type[asyncio.Protocol]:
    """A class as uvicorn's for HTTP, which tells the doorkeeper of its connections."""

    class Watched(H11Protocol):
        @property
        def is_silent(self) -> bool:
            return self.cycle is None

        def close(self) -> None:
            self.transport.abort()  # at once: a stranger need not answer a farewell

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            doorkeeper.opened(self)

        def connection_lost(self, exc: Exception | None) -> None:
            doorkeeper.closed(self)
            super().connection_lost(exc)

    return Watched


def allow_many_files() -> None:
    """Lets this process open as many files, and so connections, as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
