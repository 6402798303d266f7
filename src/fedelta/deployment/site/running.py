"""`fedelta site run`: checks a site's connection and data, and serves it until it is ended."""

from __future__ import annotations

import signal
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from fedelta.deployment.site.account import said
from fedelta.deployment.site.check import Address, check
from fedelta.deployment.site.folder import read_authority, read_key
from fedelta.deployment.site.serving import Ask, Show, SiteLoop
from fedelta.deployment.site.session import Session, only_process
from fedelta.errors import LinkError
from fedelta.runtimes.flower.connection import Connection
from fedelta.runtimes.flower.fleet import Fleet, ServerAddress
from fedelta.runtimes.remote.caller import ask, stop
from fedelta.runtimes.remote.messages import Message

MIB = 2**20


def run_site(folder: Path, show: Show) -> None:
    """Serves the site in `folder` until Ctrl-C or SIGTERM, and ends its worker then.

    Args:
        folder: of the site, with its `site.toml`.
        show: takes one line for each event.

    Raises:
        InputError: the site cannot join until a person corrects something.
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
    server = ServerAddress(address.server, read_authority(Path(address.ca)))
    return Connection(Fleet(server, read_key(Path(address.key))), address.max_message_mib * MIB)


def serve(folder: Path, connection: Connection, session: Session, show: Show) -> None:
    """Serves the site, and leaves in order however it ends."""
    try:
        SiteLoop(connection, telling(partial(ask, folder), session.path.parent, show), session, show).serve()
    finally:
        stop(folder)
        connection.leave()
        session.end()
        show("the site has left")


def telling(ask: Ask, state: Path, show: Show) -> Ask:
    """`ask`, and a line about what a recipe protects, and about what an answer has spent of it.

    Args:
        ask: has a message answered.
        state: folder of the site's state.
        show: takes the lines.
    """
    before = said(state)

    def asked(message: Message) -> Message:
        nonlocal before
        if line := _protection(message):
            show(line)
        answer = ask(message)
        if (line := said(state)) != before:
            show(line)
            before = line
        return answer

    return asked


def _protection(request: Message) -> str:
    """What the recipe in a message protects; empty if it is none or protects nothing."""
    try:
        privacy = tomllib.loads(str(request.manifest["config"]))["privacy"]
        unit, randomness = privacy["unit"], privacy.get("randomness")
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""
    if unit not in ("example", "client", "local"):
        return ""
    if randomness == "seeded":
        return f"privacy: unit {unit!r}, BUT NOISE FROM THE RECIPE'S SEED: whoever has the recipe can take it out again"
    source = "the server, which is trusted" if unit == "client" else "this site's own key"
    return f"privacy: unit {unit!r}, with noise of {source}"


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
