"""Lets one process at a time serve a site, and notes whether it is connected with the server."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedelta.durable import make_private, write_atomic
from fedelta.errors import InputError

_LOCK, _NUMBER = "site.lock", "session.json"


@dataclass(frozen=True)
class Session:
    """The site's number at the server, kept beside its state while it is connected.

    Args:
        path: of the file that holds it.
    """

    path: Path

    def lost(self) -> int | None:
        """The number that an earlier process on this machine was connected with when it died; None if it was not.

        A copy of the folder must not end the connection of the original.
        """
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            return int(record["number"]) if record["place"] == self._place else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, number: int) -> None:
        """Notes that the site is connected."""
        write_atomic(self.path, json.dumps({"number": number, "place": self._place}))

    def end(self) -> None:
        """Notes that it is not any more."""
        self.path.unlink(missing_ok=True)

    @property
    def _place(self) -> str:
        return f"{socket.gethostname()}:{self.path.resolve()}"


@contextmanager
def only_process(state: Path) -> Iterator[Session]:
    """Locks a site's state for this process; the operating system unlocks it when the process ends, however it does.

    Raises:
        InputError: another process serves the site.
    """
    make_private(state)
    descriptor = os.open(state / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _locked(descriptor):
            raise InputError(
                f"another process serves this site already ({str(state)!r} is in use).",
                hint="one `fedelta site run` for each site; end the other one first.",
            )
        yield Session(state / _NUMBER)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Locks a file; tries for a moment, since a worker that looks whether it is locked locks it for that."""
    for pause in (0.05, 0.1, 0.2, 0):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause)
        else:
            return True
    return False
