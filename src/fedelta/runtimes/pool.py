"""A pool of worker processes, each with the site of the run; one that dies is replaced by another with its packs."""

from __future__ import annotations

import logging
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from socket import AF_UNIX, SOCK_STREAM, socket, socketpair
from typing import Any, Protocol

from fedelta.errors import RoundError
from fedelta.federation.packs import Answer, Pack
from fedelta.runtimes.crossing import answers_of, error_of, pack_values
from fedelta.runtimes.hearing import Hearing
from fedelta.runtimes.parcels import Parcel, receive

logger = logging.getLogger("fedelta")

_AHEAD = 2  # packs that a worker has at a time, so that it need not wait for the next
_MOST_DEATHS = 3  # at one pack


class Process(Protocol):
    """A process of `multiprocessing`, as far as a pool needs it."""

    @property
    def pid(self) -> int | None:
        """Its id."""

    @property
    def exitcode(self) -> int | None:
        """Minus the signal that ended it; None while it runs."""

    def kill(self) -> None:
        """Ends it at once."""

    def join(self, timeout: float | None = None) -> None:
        """Waits for its end."""


Start = Callable[[int, socket, Sequence[socket]], Process]
"""Starts the worker with a number.

Args: its number; its end of the connection; the sockets of this process, which it has to close if it is a copy of it.
"""


@dataclass
class _Worker:
    number: int
    process: Process
    line: socket
    asked: deque[Pack] = field(default_factory=deque)

    def fileno(self) -> int:
        """For `multiprocessing.connection.wait`."""
        return self.line.fileno()


@dataclass(frozen=True)
class _Round:
    """A round under way.

    Args:
        packs: those that no worker has yet.
        downloads: payload to its number.
        parcel: all downloads.
        deaths: how many workers have died at a pack, by its first client.
    """

    packs: deque[Pack]
    downloads: Mapping[bytes, int]
    parcel: Parcel
    deaths: Counter[int] = field(default_factory=Counter)


class Pool:
    """Worker processes that stay for a run; started by the first round.

    Args:
        start: starts a worker.
        num_workers: how many.

    Attributes:
        peaks: highest resident memory of each worker so far, in bytes.
    """

    def __init__(self, start: Start, num_workers: int) -> None:
        self.peaks = [0] * num_workers
        self._start = start
        self._workers: list[_Worker] = []
        self._hearing = Hearing()

    @property
    def process_ids(self) -> list[int]:
        """Ids of the processes that run."""
        return [worker.process.pid or 0 for worker in self._workers]

    def train(self, packs: Sequence[Pack]) -> Iterator[Answer]:
        """Yields the answers to all packs, which are handed out in their order, as soon as a pack is done.

        Args:
            packs: of one round.

        Raises:
            RoundError: workers die again and again at the same pack.
            FedeltaError: what was raised in a worker.
        """
        downloads = list(dict.fromkeys(payload for pack in packs for payload in pack.payloads.values()))
        parcel = Parcel({"kind": "downloads"}, downloads)
        numbers = {payload: number for number, payload in enumerate(downloads)}
        try:
            yield from self._train(_Round(deque(packs), numbers, parcel))
        finally:
            parcel.close()
            if any(worker.asked for worker in self._workers):  # an error, or the rest of the replies is not asked for
                self.close()

    def _train(self, round: _Round) -> Iterator[Answer]:
        for number in range(len(self.peaks)):
            if number >= len(self._workers):
                self._workers.append(self._hired(number))
            self._tell(self._workers[number], round)
        while True:
            self._hand_out(round)
            busy = [worker for worker in self._workers if worker.asked]
            if not busy:
                return
            # Any: typed as connections, but anything with a file descriptor can be waited for.
            ready: list[Any] = wait(busy)  # type: ignore[arg-type]
            for worker in ready:
                yield from self._answers(worker, round)

    def _answers(self, worker: _Worker, round: _Round) -> Iterator[Answer]:
        """The answers of a worker that has sent something, or has died."""
        try:
            values, blobs = receive(worker.line)
        except (EOFError, OSError):
            self._replace(worker, round)
            return
        self._hearing.pass_on(worker.number, values["heard"])
        self.peaks[worker.number] = max(self.peaks[worker.number], values["peak_memory_bytes"])
        if "error" in values:
            raise error_of(values["error"])
        worker.asked.popleft()
        self._hand_out(round)  # before what is done with the answers, which takes time
        yield from answers_of(values["answers"], blobs)

    def _hand_out(self, round: _Round) -> None:
        """Asks the workers that have the fewest packs, each for one pack ahead as long as there are many."""
        while round.packs:
            worker = min(self._workers, key=lambda worker: len(worker.asked))
            if len(worker.asked) >= (_AHEAD if len(round.packs) > len(self._workers) else 1):
                return
            worker.asked.append(round.packs.popleft())
            self._ask(worker, worker.asked[-1], round)

    def _tell(self, worker: _Worker, round: _Round) -> None:
        try:
            round.parcel.send(worker.line)
        except OSError:
            self._replace(worker, round)

    def _ask(self, worker: _Worker, pack: Pack, round: _Round) -> None:
        values, blobs = pack_values(pack, round.downloads)
        parcel = Parcel({"kind": "pack", "pack": values}, blobs)
        # A worker that has died is replaced when its answer is awaited.
        with suppress(OSError):
            parcel.send(worker.line)
        parcel.close()

    def _replace(self, worker: _Worker, round: _Round) -> None:
        """Puts a new worker in the place of one that has died, with the same packs.

        Raises:
            RoundError: as many have died at this pack.
        """
        worker.process.join()
        if worker.asked:
            self._count_death(worker, round)
        worker.line.close()
        again = self._hired(worker.number)
        again.asked.extend(worker.asked)
        self._workers[worker.number] = again
        self._tell(again, round)
        for pack in again.asked:
            self._ask(again, pack, round)

    def _count_death(self, worker: _Worker, round: _Round) -> None:
        pack, cause = worker.asked[0], _cause(worker.process.exitcode or 0)
        clients = sorted(pack.payloads)
        round.deaths[clients[0]] += 1
        which = f"client {clients[0]}" if len(clients) == 1 else f"clients {', '.join(map(str, clients))}"
        if round.deaths[clients[0]] >= _MOST_DEATHS:
            raise RoundError(
                f"round {pack.round}: {_MOST_DEATHS} worker processes have died while they trained {which}; the last "
                f"was ended by {cause}.",
                hint="if memory ran out, set `runtime.workers` or `runtime.lanes` lower, or `runtime.name` to "
                "'simulation'.",
            )
        logger.warning(
            "round %d: the worker process that trained %s was ended by %s; another takes its place.",
            pack.round, which, cause,
        )  # fmt: skip

    def _hired(self, number: int) -> _Worker:
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        inherited = [ours, *(worker.line for worker in self._workers)]
        with theirs:
            return _Worker(number, self._start(number, theirs, inherited), ours)

    def close(self) -> None:
        """Ends all workers at once; they hold nothing that is needed."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.line.close()
        self._workers = []


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"{name}, as the system does when memory runs out" if name == "SIGKILL" else name
