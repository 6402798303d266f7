"""`fedelta site run`: checks a site's connection and data, and serves it until it is ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from fedelta.deployment.site.check import Address, check
from fedelta.deployment.site.folder import read_authority, read_key
from fedelta.deployment.site.serving import Server, Show
from fedelta.deployment.site.session import Session, only_process
from fedelta.errors import LinkError
from fedelta.runtimes.flower.connection import Connection
from fedelta.runtimes.flower.fleet import Fleet
from fedelta.runtimes.flower.fleet import Server as Host
from fedelta.runtimes.remote.caller import ask, stop

MIB = 2**20


def run_site(folder: Path, show: Show) -> None:
    """Serves the site in `folder` until Ctrl-C or SIGTERM, and ends its worker then.

    Args:
        folder: of the site, with its `site.toml`.
        show: takes one line for each event.

    Raises:
        InputError: the site cannot join until somebody mends something.
    """
    with closing(check(folder)) as lines:
        for line in lines:
            if isinstance(line, Address):
                address = line
                connection = connect(address)
                with suppress(LinkError):  # said where the site joins
                    connection.look()
            else:
                show(line)
    with only_process(Path(address.state)) as session, _ended_by_sigterm():
        serve(folder, connection, session, show)


def connect(address: Address) -> Connection:
    """The connection of a site, which asks nothing yet.

    Raises:
        InputError: the key or the certificate is missing or cannot be used.
    """
    host = Host(address.server, read_authority(Path(address.ca)))
    return Connection(Fleet(host, read_key(Path(address.key))), address.max_message_mib * MIB)


def serve(folder: Path, connection: Connection, session: Session, show: Show) -> None:
    """Serves the site, and leaves in order however it ends."""
    try:
        Server(connection, lambda message: ask(folder, message), session, show).serve()
    finally:
        stop(folder)
        connection.leave()
        session.end()
        show("the site has left")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM, by which systemd and Compose end a service, end this process in order."""

    def end(*_: object) -> NoReturn:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
