"""`python -m fedelta.deployment.site.worker FOLDER`: the process of a site that keeps model and data loaded.

It listens on a local socket before it loads anything, and answers one message after the other. It ends when there was
nothing to do for a while, and with the process that runs the site. What it has to remember is on the disk, so it may be
killed at any time.
"""

from __future__ import annotations

import fcntl
import hmac
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fedelta.errors import FedeltaError, PayloadError
from fedelta.runtimes.remote.frames import SECRET_BYTES, read_exactly, receive, send
from fedelta.runtimes.remote.messages import REFUSED, Message
from fedelta.runtimes.remote.worker_files import WorkerFiles, address, is_locked, state_of

if TYPE_CHECKING:
    from fedelta.deployment.site.settings import SiteSettings

logger = logging.getLogger("fedelta")
_LOG_BYTES, _NUM_LOGS = 2**20, 3
_CALLER_SECONDS = 30.0  # a caller on this machine sends without pauses; one that does not must not keep others waiting
_ANSWER_SECONDS = 600.0
_WATCH_SECONDS = 0.5
_BACKLOG = 16
_MOST_FILES = 65536

Answer = Callable[[Message], Message]


@dataclass(frozen=True)
class Desk:
    """Answers the callers of a worker, one after the other.

    Args:
        listener: socket that callers connect to.
        secret: what a caller has to send first.
        answer: to a message.
        max_bytes: of a message.
    """

    listener: socket.socket
    secret: bytes
    answer: Answer
    max_bytes: int

    def serve(self, idle_seconds: float) -> None:
        """Returns when no caller has come for so long."""
        self.listener.settimeout(idle_seconds)
        while True:
            try:
                connection, _ = self.listener.accept()
            except TimeoutError:
                return
            with connection:
                try:
                    self._serve(connection)
                except OSError as error:  # the caller has ended; when it asks again, the answer is ready
                    logger.warning("a caller is gone: %s", error)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(_CALLER_SECONDS)
        if not hmac.compare_digest(read_exactly(connection, SECRET_BYTES), self.secret):
            logger.warning("a caller does not know the secret")
            return
        try:
            message = receive(connection, self.max_bytes)
        except PayloadError as error:
            logger.warning("a caller sent what is no message: %s", error)
            answer = Message(REFUSED, {"reason": error.message, "hint": error.hint or ""})
        else:
            answer = self.answer(message)
        connection.settimeout(_ANSWER_SECONDS)
        send(connection, answer)


def main(folder: str) -> None:
    """Runs the worker of the site in `folder`; returns at once if it has one."""
    os.umask(0o077)
    with suppress(PermissionError):  # it leads a session already
        os.setsid()
    files = WorkerFiles(state_of(folder))
    files.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.state.chmod(0o700)
    lock = _locked(files.lock)
    if lock is None:
        return
    with lock, _listening(files.socket) as listener:
        _log_to(files.log)
        _end_with_supervisor(files.supervisor)
        answer, settings = _service(folder)
        idle_seconds, max_mib = 0.1, 1
        if settings is not None:
            idle_seconds, max_mib = 60 * settings.worker.idle_minutes, settings.worker.max_message_mib
        logger.info("worker %d is ready", os.getpid())
        Desk(listener, files.secret(), answer, max_mib * 2**20).serve(idle_seconds)
        files.socket.unlink(missing_ok=True)
        logger.info("worker %d ends, since there was nothing to do", os.getpid())


def _service(folder: str) -> tuple[Answer, SiteSettings | None]:
    """What answers messages, and the site's settings; without them if they are invalid, and everything is refused."""
    import torch

    from fedelta.deployment.site.refusals import refusal
    from fedelta.deployment.site.service import Service
    from fedelta.deployment.site.settings import load_site
    from fedelta.plugins import load_plugin

    try:
        settings = load_site(folder)
        for plugin in settings.plugins:
            load_plugin(plugin)
    except FedeltaError as error:
        logger.error("%s", error)
        refused = refusal(error)
        return lambda _: refused, None
    if settings.runtime.threads is not None:
        torch.set_num_threads(settings.runtime.threads)
    return Service(settings).answer, settings


def _locked(path: Path) -> IO[str] | None:
    """The lock file, locked, with this process's id; None if another process has locked it."""
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    with suppress(OSError):  # a full disk, of which the answers tell more
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    return file


def _listening(path: Path) -> socket.socket:
    """A socket that listens at `path`, in place of one that a killed worker has left there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with address(path) as text:
        listener.bind(text)
    listener.listen(_BACKLOG)
    return listener


def _log_to(path: Path) -> None:
    handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=_NUM_LOGS, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _end_with_supervisor(lock: Path) -> None:
    """Ends this process with the one that has started it, if that runs the site and so lives as long as the site.

    Otherwise the worker was started by a process that lives for one message, and ends when it is idle.
    """
    if not is_locked(lock):
        return
    parent = os.getppid()

    def watch() -> None:
        _wait_for_end(parent)
        logger.info("worker %d ends with process %d, which ran the site", os.getpid(), parent)
        os.kill(os.getpid(), signal.SIGKILL)  # at once, whatever other threads do

    threading.Thread(target=watch, daemon=True).start()


def _wait_for_end(pid: int) -> None:
    """Returns when a process, the parent of this one, has ended: then another process becomes its parent."""
    while os.getppid() == pid:
        time.sleep(_WATCH_SECONDS)


if __name__ == "__main__":
    # Files that the caller was given open by its own caller, perhaps with locks: they must not outlive it here.
    os.closerange(3, _MOST_FILES)
    main(sys.argv[1])
