"""`fedelta site run`: checks a site's data and connection, and serves it until it is ended."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fedelta.deployment.diagnosis import clock_problem
from fedelta.deployment.serving import Server, Show
from fedelta.deployment.session import only_process
from fedelta.deployment.site_check import Address, check
from fedelta.deployment.site_folder import read_authority, read_key
from fedelta.errors import InputError, LinkError
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
    checks = check(folder)
    address = next(checks)
    assert isinstance(address, Address)  # noqa: S101 for the type checker: settings come first
    connection = connect(address)
    with only_process(Path(address.state)) as session, _ended_by_sigterm():
        try:
            _look(connection, show)
            for line in checks:
                show(str(line))
            Server(connection, lambda message: ask(folder, message), session, show).serve()
        finally:
            checks.close()
            stop(folder)
            connection.leave()
            session.end()
