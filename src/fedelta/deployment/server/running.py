"""The running server: Flower's programs and the proxy, kept alive; sites registered by their keys; deployments run.

Nothing of it is lost when this process and all below it are killed: sites are in `sites/`, deployments in
`state/deployments/`, and what a deployment has reached is in the checkpoint of its run directory.
"""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from shlex import quote

from fedelta.deployment.children import Child, Program
from fedelta.deployment.server import certificates
from fedelta.deployment.server.hub import Hub, refuse_open_secrets, restore_state
from fedelta.deployment.server.queue import Queue
from fedelta.deployment.server.registry import Registry
from fedelta.deployment.server.submissions import Submissions
from fedelta.durable import write_atomic
from fedelta.errors import FedeltaError, InputError, LinkError, RunError
from fedelta.record.files import exclusive
from fedelta.runtimes.flower import programs
from fedelta.runtimes.flower.control import Control

Say = Callable[[str], None]

_POLL_SECONDS = 0.3
_LOOK_SECONDS = 0.05
_START_SECONDS = 60.0
_SOON_DAYS = 30
_ANEW = (
    "Without superlink.db, superlink.db-wal and superlink.db-shm Flower begins a new one: sites are registered again "
    "from their keys, and deployments go on from their checkpoints."
)
# SQLite keeps what is not yet in a database `x.db` in x.db-wal, with x.db-shm.
_BESIDE = ("-wal", "-shm")


def run_server(hub: Hub, say: Say) -> None:
    """Runs the server of a folder until Ctrl-C or SIGTERM.

    Args:
        hub: the folder.
        say: gets one line for each event.

    Raises:
        InputError: a server runs on this folder already, the port is in use, certificates cannot be used, or the
            database is of another version of Flower.
    """
    settings = hub.settings()
    restore_state(hub)
    with _alone(hub), _until_ended():
        refuse_open_secrets(hub)
        left = certificates.check(hub.certificates, settings.host)
        if left.days < _SOON_DAYS:
            renew = f"fedelta server init {quote(str(hub.path))} --renew"
            say(f"the certificate expires in {left.days} days; make a new one: {renew}")
        prepare_database(hub, programs.flower_version(), say)
        refuse_port_in_use(settings.listen, settings.port)
        server = _Server(hub, say, f"127.0.0.1:{_free_port()}")
        try:
            server.start()
            say(f"sites can connect to {settings.address}; Ctrl-C ends the server")
            while True:
                server.step()
                time.sleep(_POLL_SECONDS)
        finally:
            server.end()


@dataclass
class _Server:
    """The programs of a server, and what it does with them.

    Args:
        hub: its folder.
        say: gets one line for each event.
        address: of the SuperLink, on loopback.
    """

    hub: Hub
    say: Say
    address: str
    _superlink: Child = field(init=False)
    _others: list[Child] = field(init=False)
    _registry: Registry = field(init=False)
    _queue: Queue = field(init=False)
    _is_up: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        hub, address, files = self.hub, self.address, self.hub.certificates
        environment = programs.environment(hub.flower_home) | {programs.HUB: str(hub.path.resolve())}

        def child(name: str, command: list[str]) -> Child:
            return Child(Program(name, command, environment, hub.logs / f"{name}.log"))

        self._superlink = child("superlink", programs.superlink(address, files, hub.database, hub.secret))
        proxy = [sys.executable, "-m", "fedelta.deployment.server.proxy", str(hub.path), address]
        self._others = [
            child("superexec", programs.superexec(address, files, hub.secret)),
            child("proxy", proxy),
        ]
        control = Control.connect(address, files, hub.secret)
        self._registry = Registry(hub, control, self.say)
        self._queue = Queue(Submissions(hub), control, self.say)

    def start(self) -> None:
        """Starts the SuperLink, registers the sites, and only then lets them in."""
        self._superlink.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._superlink.pid is None or time.monotonic() > deadline:
                raise FedeltaError(
                    f"Flower's SuperLink does not start:\n{self._superlink.last_lines()}",
                    hint=f"its log is {self._superlink.program.log}. {_ANEW}",
                )
            time.sleep(0.1)
        for child in self._others:
            child.start()
        self._queue.take_over()

    def step(self) -> None:
        """Keeps everything as it should be."""
        for child in (self._superlink, *self._others):
            if message := child.keep():
                self.say(message)
        try:
            self._registry.step()
            self._queue.step()
        except LinkError as error:
            if self._is_up:
                self.say(f"waiting for Flower's SuperLink: {error.message}")
            self._is_up = False
        else:
            self._is_up = True

    def end(self) -> None:
        """Ends all programs, those that start others first."""
        for child in (*self._others, self._superlink):
            child.end()

    def _answers(self) -> bool:
        try:
            self._registry.step()
        except LinkError:
            return False
        return True


def prepare_database(hub: Hub, version: str, say: Say) -> None:
    """Makes sure that this version of Flower can open the database; copies it before Flower upgrades it.

    Raises:
        InputError: a newer version of Flower has made it.
    """
    record = hub.state / "flower-version"
    earlier = record.read_text(encoding="utf-8").strip() if record.is_file() else version
    if hub.database.is_file() and earlier != version:
        if _numbers(earlier) > _numbers(version):
            raise InputError(
                f"the database {str(hub.database)!r} was made by Flower {earlier}, and {version}, which is installed, "
                "cannot open it.",
                hint=f"pip install 'flwr=={earlier}'. {_ANEW}",
            )
        copy = hub.state / f"{hub.database.name}.{earlier}"
        for ending in ("", *_BESIDE):
            if (file := hub.state / f"{hub.database.name}{ending}").is_file():
                shutil.copy2(file, f"{copy}{ending}")
        say(f"Flower {version} upgrades the database of {earlier}, of which a copy is kept in {copy}")
    write_atomic(record, version)


def refuse_port_in_use(host: str, port: int) -> None:
    """Refuses an address that another program listens on, or that is not of this machine.

    Raises:
        InputError: it cannot be listened on.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror}.",
            hint="end the program that does, or change `port` in server.toml; sites have the port in their site.toml.",
        ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


@contextmanager
def _alone(hub: Hub) -> Iterator[None]:
    """Holds the lock of a running server; waits out a command that looks at it."""
    message = f"a server runs on {str(hub.path)!r} already."
    for is_last in (False, False, True):
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(hub.lock, message))
            except RunError:
                if is_last:
                    raise
                time.sleep(_LOOK_SECONDS)
                continue
            yield
            return


@contextmanager
def _until_ended() -> Iterator[None]:
    """Makes SIGTERM, by which service managers end a program, the same as Ctrl-C."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
