"""The sides, and one of them at work in processes of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.memory import family

ROOT = Path(__file__).resolve().parents[2]
CORES = len(os.sched_getaffinity(0))
# Of the slowest round, by far.
PATIENCE_SECONDS = 600


@dataclass(frozen=True)
class Side:
    """Who does the work.

    Args:
        title: for the table.
        module: the program.
        environment: whose interpreter runs it; None: the one that runs the benchmark.
        workers: processes that train; 0: as many as fedelta finds right.
        threads: arithmetic threads of each; None: as fedelta finds right.
        is_peer: counts when the best peer is named.
        is_alone: needs a namespace with loopback only.
        does: what it does, for the page.
    """

    title: str
    module: str
    environment: str | None
    workers: int
    threads: int | None
    is_peer: bool = True
    is_alone: bool = False
    does: str = ""


SIDES = {
    "fedelta": Side(
        "fedelta", "ours", None, 0, None, is_peer=False,
        does="`Experiment.run`, default settings of `[runtime]`; run directory, ledger, checkpoint, checks and all.",
    ),
    "bare": Side(
        "bare loop, one process", "bare", "bare", 1, CORES, is_peer=False,
        does="plain PyTorch, one model for all clients, nothing encoded, checked or written.",
    ),
    "bare2": Side(
        f"bare loop, {CORES} processes", "bare", "bare", CORES, 1, is_peer=False,
        does="the same, with the cohort shared among processes.",
    ),
    "pfl": Side(
        "pfl, one process", "pfl", "pfl", 1, CORES,
        does="`FederatedAveraging`, `SimulatedBackend`, PyTorch's fused SGD.",
    ),
    "pfl2": Side(
        f"pfl, {CORES} processes", "pfl", "pfl", CORES, 1,
        does="the same with torch.distributed (gloo), as started by `torchrun`.",
    ),
    "flower": Side(
        f"Flower, {CORES} workers", "flower", "flower", CORES, 1, is_alone=True,
        does="`FedAvg.start`, simulation with Ray, one core for each client app; a worker builds its model once.",
    ),
    "blazefl1": Side(
        "BlazeFL, one process", "blazefl", "blazefl", 1, CORES,
        does="the server of `blazefl.contrib`, and a trainer that takes one client after the other.",
    ),
    "blazefl": Side(
        f"BlazeFL, {CORES} workers", "blazefl", "blazefl", CORES, 1,
        does="server of `blazefl.contrib`, `ProcessPoolClientTrainer` with shared memory; the model is built once, "
        "and takes a step, before the processes of a round are copied.",
    ),
}  # fmt: skip


class SideError(Exception):
    """A side ended, said something else than was expected, or took too long."""


class Running:
    """A side that waits for commands.

    Args:
        name: of the side.
        process: its first process.
        ask: where commands go.
        answer: where answers come from.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], ask: int, answer: int) -> None:
        self.name = name
        self.process = process
        self._ask = os.fdopen(ask, "w")
        self._answer = os.fdopen(answer, "r")

    def hear(self) -> dict[str, object]:
        """The next answer."""
        if not select.select([self._answer], [], [], PATIENCE_SECONDS)[0]:
            raise SideError(f"{self.name} did not answer within {PATIENCE_SECONDS} s")
        line = self._answer.readline()
        if not line:
            raise SideError(f"{self.name} ended before it answered")
        return json.loads(line)

    def round(self) -> float:
        """Lets it do a round; returns the seconds until it says that all is done."""
        started = time.perf_counter()
        self.say("round")
        self.hear()
        return time.perf_counter() - started

    def params(self, path: Path) -> None:
        """Lets it write the server's params."""
        self.say(f"params {path}")
        self.hear()

    def say(self, command: str) -> None:
        with suppress(BrokenPipeError):
            print(command, file=self._ask, flush=True)

    def end(self) -> None:
        """Ends it and all of its processes."""
        self.say("end")
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for pid in family(self.process.pid) if self.process.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._ask.close()
        self._answer.close()


@contextmanager
def running(
    name: str, folder: Path, environments: Path, log: Path, workers: int | None = None, *, is_tiny: bool = False
) -> Iterator[Running]:
    """The side on the work in `folder`, which has been loaded but not begun when `hear` gives the first answer.

    Args:
        name: of the side.
        folder: written by prepare.py.
        environments: the peers' environments are below it.
        log: what the side prints.
        workers: instead of the side's own number.
        is_tiny: a second arithmetic thread would only slow it down, so it has none.
    """
    side = SIDES[name]
    threads = 1 if is_tiny and side.threads else side.threads
    ask_end, ask = os.pipe()
    answer, answer_end = os.pipe()
    with tempfile.TemporaryDirectory(prefix="peers") as home, log.open("ab") as output:
        command = [
            *(in_namespace() if side.is_alone else ()),
            str(interpreter(side, environments)), "-m", f"benchmarks.peers.sides.{side.module}", str(folder),
            "--workers", str(side.workers if workers is None else workers), "--threads", str(threads or 1),
            "--pipes", str(ask_end), str(answer_end),
        ]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=home, env=surroundings(side, home, threads), pass_fds=(ask_end, answer_end),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        os.close(ask_end)
        os.close(answer_end)
        at_work = Running(name, process, ask, answer)
        try:
            yield at_work
        finally:
            at_work.end()


def interpreter(side: Side, environments: Path) -> Path:
    """The Python that runs it."""
    return Path(sys.executable) if side.environment is None else environments / side.environment / "bin" / "python"


def in_namespace() -> list[str]:
    """Starts a program where loopback is the only network and no process outlives the first."""
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    alone = ["unshare", *as_root, "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*alone, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def surroundings(side: Side, home: str, threads: int | None) -> dict[str, str]:
    """No telemetry, no network; threads are the side's own choice if it has one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    environment |= {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}" if side.environment is None else str(ROOT),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "FLWR_HOME": home,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": home,
        "TMPDIR": home,
    }
    numbers = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return environment | numbers
