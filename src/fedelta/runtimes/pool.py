"""A pool of worker processes, each with the site of the run; one that dies is replaced by another with its orders."""

from __future__ import annotations

import logging
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import wait
from socket import AF_UNIX, SOCK_STREAM, socket, socketpair
from typing import Any, Protocol

from fedelta.engine.filling import Chunk
from fedelta.errors import RoundError
from fedelta.federation.measuring import BatchSums, Portion
from fedelta.federation.memory_files import packed
from fedelta.federation.packs import Answer, Pack
from fedelta.params import Params
from fedelta.runtimes.crossing import answers_of, batch_sums_of, error_of, pack_values
from fedelta.runtimes.hearing import Hearing
from fedelta.runtimes.parcels import Inbox, Parcel

logger = logging.getLogger("fedelta")

_AHEAD = 2  # orders that a worker has at a time, so that it need not wait for the next
_MOST_DEATHS = 3  # at one order
_MOST_NAMED = 8  # clients in a message
_DEED_OF_FILLING = "computed features of the frozen part of the model"


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


@dataclass(frozen=True)
class _Order:
    """What one worker is to do.

    Args:
        number: its place among the orders of the work.
        deed: what the worker does, in the past tense, for messages.
        parcel: makes what is sent to the worker.
    """

    number: int
    deed: str
    parcel: Callable[[], Parcel]


@dataclass
class _Worker:
    number: int
    process: Process
    line: socket
    inbox: Inbox
    asked: deque[_Order] = field(default_factory=deque)

    def fileno(self) -> int:
        """For `multiprocessing.connection.wait`."""
        return self.line.fileno()


@dataclass(frozen=True)
class _Work:
    """The part of a round that is under way: its packs, or its evaluation.

    Args:
        title: of the messages about it.
        orders: those that no worker has yet.
        parcel: what every worker needs for them.
        deaths: how many workers have died at an order, by its number.
    """

    title: str
    orders: deque[_Order]
    parcel: Parcel
    deaths: Counter[int] = field(default_factory=Counter)


_Done = tuple[int, dict[str, Any], list[bytes]]  # number of an order, and the values and blobs of its answer


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

    def train(self, bundles: Sequence[Sequence[Pack]]) -> Iterator[Answer]:
        """Yields the answers to all packs, as soon as a bundle of them is done.

        Args:
            bundles: of packs of one round, in the order in which they are handed out.

        Raises:
            RoundError: workers die again and again at the same bundle.
            FedeltaError: what was raised in a worker.
        """
        packs = [pack for bundle in bundles for pack in bundle]
        downloads = list(dict.fromkeys(payload for pack in packs for payload in pack.payloads.values()))
        numbers = {payload: number for number, payload in enumerate(downloads)}
        orders = [_Order(place, _training(it), partial(_packs, it, numbers)) for place, it in enumerate(bundles)]
        title = f"round {packs[0].round}" if packs else "training"
        for _, values, blobs in self._done(title, orders, Parcel({"kind": "downloads"}, downloads)):
            yield from answers_of(values["answers"], blobs)

    def measure(self, portions: Sequence[Portion], models: Sequence[Params]) -> list[BatchSums]:
        """The sums of every portion.

        Args:
            portions: of one evaluation.
            models: tensors of the models that are evaluated.

        Raises:
            RoundError: workers die again and again at the same portion.
            FedeltaError: what was raised in a worker.
        """
        orders = [_Order(place, _evaluation(it), partial(_portion, it)) for place, it in enumerate(portions)]
        parcel = Parcel({"kind": "models"}, list(map(packed, models)))
        sums = {place: batch_sums_of(values["sums"]) for place, values, _ in self._done("evaluation", orders, parcel)}
        return [sums[place] for place in range(len(portions))]

    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Computes cached features, in memory that the workers share with this process.

        Raises:
            RoundError: workers die again and again at the same chunk.
            FedeltaError: what was raised in a worker.
        """
        orders = [_Order(place, _DEED_OF_FILLING, partial(_chunk, it)) for place, it in enumerate(chunks)]
        for _ in self._done("the cache", orders, Parcel({"kind": "models"})):
            pass

    def _done(self, title: str, orders: Sequence[_Order], parcel: Parcel) -> Iterator[_Done]:
        """The answers to all orders, as they arrive."""
        try:
            yield from self._answers(_Work(title, deque(orders), parcel))
        finally:
            parcel.close()
            if any(worker.asked for worker in self._workers):  # an error, or the rest of the answers is not asked for
                self.close()

    def _answers(self, work: _Work) -> Iterator[_Done]:
        for number in range(len(self.peaks)):
            if number >= len(self._workers):
                self._workers.append(self._hired(number))
            self._tell(self._workers[number], work)
        while True:
            self._hand_out(work)
            busy = [worker for worker in self._workers if worker.asked]
            if not busy:
                return
            # Any: typed as connections, but anything with a file descriptor can be waited for.
            ready: list[Any] = wait(busy)  # type: ignore[arg-type]
            for worker in ready:
                yield from self._answer(worker, work)

    def _answer(self, worker: _Worker, work: _Work) -> Iterator[_Done]:
        """The answer of a worker that has sent something; none if it has died."""
        try:
            values, blobs = worker.inbox.receive()
        except (EOFError, OSError):
            self._replace(worker, work)
            return
        self._hearing.pass_on(worker.number, values["heard"])
        self.peaks[worker.number] = max(self.peaks[worker.number], values["peak_memory_bytes"])
        if "error" in values:
            raise error_of(values["error"])
        order = worker.asked.popleft()
        self._hand_out(work)  # before what is done with the answer, which takes time
        yield order.number, values, blobs

    def _hand_out(self, work: _Work) -> None:
        """Asks the workers that have the fewest orders, each for one order ahead as long as there are many."""
        while work.orders:
            worker = min(self._workers, key=lambda worker: len(worker.asked))
            if len(worker.asked) >= (_AHEAD if len(work.orders) > len(self._workers) else 1):
                return
            worker.asked.append(work.orders.popleft())
            self._ask(worker, worker.asked[-1])

    def _tell(self, worker: _Worker, work: _Work) -> None:
        try:
            work.parcel.send(worker.line)
        except OSError:
            self._replace(worker, work)

    def _ask(self, worker: _Worker, order: _Order) -> None:
        parcel = order.parcel()
        # A worker that has died is replaced when its answer is awaited.
        with suppress(OSError):
            parcel.send(worker.line)
        parcel.close()

    def _replace(self, worker: _Worker, work: _Work) -> None:
        """Puts a new worker in the place of one that has died, with the same orders.

        Raises:
            RoundError: as many have died at this order.
        """
        worker.process.join()
        if worker.asked:
            self._count_death(worker, work)
        worker.line.close()
        again = self._hired(worker.number)
        again.asked.extend(worker.asked)
        self._workers[worker.number] = again
        self._tell(again, work)
        for order in again.asked:
            self._ask(again, order)

    def _count_death(self, worker: _Worker, work: _Work) -> None:
        order, cause = worker.asked[0], _cause(worker.process.exitcode or 0)
        work.deaths[order.number] += 1
        if work.deaths[order.number] >= _MOST_DEATHS:
            raise RoundError(
                f"{work.title}: {_MOST_DEATHS} worker processes have died while they {order.deed}; the last was ended "
                f"by {cause}.",
                hint="if memory ran out, set `runtime.workers` or `runtime.lanes` lower, or `runtime.name` to "
                "'simulation'.",
            )
        logger.warning(
            "%s: the worker process that %s was ended by %s; another takes its place.", work.title, order.deed, cause
        )

    def _hired(self, number: int) -> _Worker:
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        inherited = [ours, *(worker.line for worker in self._workers)]
        with theirs:
            return _Worker(number, self._start(number, theirs, inherited), ours, Inbox(ours))

    def close(self) -> None:
        """Ends all workers at once; they hold nothing that is needed."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.line.close()
        self._workers = []


def _packs(packs: Sequence[Pack], downloads: Mapping[bytes, int]) -> Parcel:
    values, blobs = pack_values(packs, downloads)
    return Parcel({"kind": "packs", "packs": values}, blobs)


def _portion(portion: Portion) -> Parcel:
    return Parcel({"kind": "portion", "portion": asdict(portion)})


def _chunk(chunk: Chunk) -> Parcel:
    return Parcel({"kind": "chunk", **asdict(chunk)})


def _training(packs: Sequence[Pack]) -> str:
    clients = sorted(client_id for pack in packs for client_id in pack.payloads)
    names = ", ".join(map(str, clients[:_MOST_NAMED]))
    more = f" and {len(clients) - _MOST_NAMED} more" if len(clients) > _MOST_NAMED else ""
    return f"trained client {names}" if len(clients) == 1 else f"trained clients {names}{more}"


def _evaluation(portion: Portion) -> str:
    return f"evaluated rows {portion.start} to {portion.stop - 1} of the test data"


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"{name}, as the system does when memory runs out" if name == "SIGKILL" else name
