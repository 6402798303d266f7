"""Programs that a test starts, with everything that they start in turn, and how each of these is killed.

Every process of a test carries a mark in its environment, which its children inherit: so they are known even where a
program has moved them to another session, and none outlives the test.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "FEDELTA_TEST_MARK"
# The environment in which a program runs offline and says nothing to anyone.
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "PYTHONUNBUFFERED": "1",
}


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def until(holds: Callable[[], object], seconds: float, what: str, every: float = 0.1) -> None:
    """Waits until `holds()` is true.

    Raises:
        TimeoutError: it did not within `seconds`; says `what`.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:.0f} s still not: {what}")
        time.sleep(every)


@dataclass
class Program:
    """A running program and the file that it prints to.

    Args:
        process: the program itself.
        log: its standard output and error.
        mark: in the environment of it and all that it started.
        begin: bytes of the log that are from an earlier program.
    """

    process: subprocess.Popen[bytes]
    log: Path
    mark: str
    begin: int = 0

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_bytes()[self.begin :].decode(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def wait_for(self, text: str, seconds: float = 60, after: int = 0) -> None:
        """Waits until `text` is in its log, behind `after` bytes; fails at once if it ends before."""
        begin = max(after, self.begin)

        def has_said() -> bool:
            is_running = self.is_running
            if text in self.log.read_bytes()[begin:].decode(errors="replace"):
                return True
            if not is_running:
                raise AssertionError(f"{self.log.name} ended with {self.process.returncode}:\n{self.text[-3000:]}")
            return False

        try:
            until(has_said, seconds, f"{self.log.name} says {text!r}")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.text[-3000:]}") from None

    def wait(self, seconds: float = 120) -> int:
        """Waits until it has ended, and returns its exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.log.name} still runs after {seconds:.0f} s:\n{self.text[-3000:]}") from None

    def tree(self) -> list[psutil.Process]:
        """All living processes with its mark, itself included, oldest first."""
        return sorted(_marked(self.mark), key=lambda process: process.pid)

    def part(self, *words: str) -> list[psutil.Process]:
        """Those of its processes whose command line has one of `words`."""
        return [process for process in self.tree() if any(word in " ".join(_command(process)) for word in words)]

    def kill(self, *words: str) -> int:
        """Kills -9 those of its processes whose command line has one of `words`, all of them without words.

        Returns how many there were.
        """
        victims = self.part(*words) if words else self.tree()
        for victim in victims:
            _signal(victim, signal.SIGKILL)
        psutil.wait_procs(victims, 5)
        return len(victims)

    def interrupt(self) -> None:
        """What Ctrl-C does at a terminal: the whole foreground group gets the signal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> None:
        """Ends it and all that it started, politely first."""
        if self.is_running:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(8)
        self.kill()
        self.process.wait(5)


@dataclass
class Programs:
    """The programs of one test; ends them all.

    Args:
        folder: where they print to.
        prefix: put before every command, such as `ip netns exec NAME`.
    """

    folder: Path
    started: list[Program] = field(default_factory=list)

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str] = {}, prefix: Sequence[str] = ()
    ) -> Program:
        """Starts a command in a session of its own, `prefix` put before it."""
        mark = uuid.uuid4().hex
        log = self.folder / f"{name}.log"
        bin_folder = str(Path(sys.executable).parent)
        environment = {
            **os.environ,
            **OFFLINE,
            MARK: mark,
            "PATH": os.pathsep.join([bin_folder, os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)]),
            **env,
        }
        with log.open("ab") as stream:
            begin = stream.tell()
            process = subprocess.Popen(
                [*prefix, *command],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(Program(process, log, mark, begin))
        return self.started[-1]

    def run(
        self, name: str, command: Sequence[str], env: Mapping[str, str] = {}, seconds: float = 120
    ) -> tuple[int, str]:
        """Runs a command to its end; returns its exit status and what it printed since it started."""
        program = self.start(name, command, env)
        return program.wait(seconds), program.text

    def end(self) -> None:
        """Ends all of them, the last one first."""
        for program in reversed(self.started):
            program.end()
        self.started.clear()


def fedelta(*arguments: str | Path) -> list[str]:
    """The command line of `fedelta ARGUMENTS` in this environment."""
    return [str(Path(sys.executable).parent / "fedelta"), *map(str, arguments)]


def peak_mib(process: psutil.Process) -> float:
    """The largest resident size that a process has had, in MiB; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def _marked(mark: str) -> Iterator[psutil.Process]:
    entry = f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if entry in path.read_bytes().split(b"\0"):
                process = psutil.Process(int(path.parent.name))
                if process.status() != psutil.STATUS_ZOMBIE:
                    yield process
        except (OSError, psutil.NoSuchProcess):
            continue


def _command(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        return []
    return command


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
