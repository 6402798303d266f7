"""The files in a site's state folder by which its worker is reached. Imports no torch.

    worker.sock      the worker listens here
    worker.secret    what a caller has to know
    worker.lock      locked by the worker while it lives; holds its process id
    worker.log       what the worker logs
    worker.err       what it printed last, such as the end of a crash
    site.lock        locked by `fedelta site run` while it lives

Only the owner may enter the folder or read the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedelta.errors import InputError
from fedelta.runtimes.remote.frames import SECRET_BYTES

_SITE_FILE, _STATE = "site.toml", "state"
_MAX_ADDRESS = 100  # bytes; the path of a socket has 108 on Linux, 104 on macOS


@dataclass(frozen=True)
class WorkerFiles:
    """The files in the folder `state`."""

    state: Path

    @property
    def socket(self) -> Path:
        """Of the worker."""
        return self.state / "worker.sock"

    @property
    def lock(self) -> Path:
        """Of the worker."""
        return self.state / "worker.lock"

    @property
    def log(self) -> Path:
        """Of the worker."""
        return self.state / "worker.log"

    @property
    def output(self) -> Path:
        """What the worker prints."""
        return self.state / "worker.err"

    @property
    def supervisor(self) -> Path:
        """Lock of the process that runs the site, if there is one."""
        return self.state / "site.lock"

    def secret(self) -> bytes:
        """The secret; made by the first process that asks.

        Raises:
            InputError: others may read it.
        """
        path = self.state / "worker.secret"
        if not path.exists():
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = self.state / f".worker.secret.{os.getpid()}"
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(secrets.token_bytes(SECRET_BYTES))
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)  # complete when it appears, and the first one stays
            draft.unlink()
        if path.stat().st_mode & 0o077:
            raise InputError(f"others than its owner may read {str(path)!r}.", hint=f"`chmod 600 {path}`")
        return path.read_bytes()

    def worker_pid(self) -> int | None:
        """The process id of the worker; None if none lives."""
        if not is_locked(self.lock):
            return None
        text = self.lock.read_text(encoding="utf-8")
        return int(text) if text.isdecimal() else None


def state_of(folder: str | Path) -> Path:
    """The state folder of a site.

    Raises:
        InputError: the site's settings are missing or not TOML.
    """
    path = Path(folder).absolute() / _SITE_FILE
    try:
        state = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("state", _STATE)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{str(path)!r} cannot be read: {reason}.", hint="`fedelta site init` makes one.") from error
    return path.parent / Path(str(state)).expanduser()


def is_locked(path: Path) -> bool:
    """Whether a process has locked a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """A text for the path of a socket that is short enough for the operating system.

    Raises:
        InputError: there is none.
    """
    if len(os.fsencode(path)) <= _MAX_ADDRESS:
        yield str(path)
        return
    if not Path("/proc/self/fd").is_dir():
        raise InputError(
            f"the path of the socket {str(path)!r} has more than {_MAX_ADDRESS} bytes.",
            hint="give the site a shorter folder: `state` in its settings.",
        )
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def connected(path: Path) -> socket.socket | None:
    """A connection with the worker that listens at `path`; None if none does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address(path) as text:
            connection.connect(text)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection
