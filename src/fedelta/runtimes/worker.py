"""A worker process: trains and evaluates as its socket tells it, until the run or the socket ends.

It is silent about everything but its answers: what it logs and warns of goes to the run, which shows it.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from multiprocessing import parent_process
from socket import socket

from fedelta.engine.filling import Chunk
from fedelta.federation.client import Site
from fedelta.federation.measuring import Portion, measured
from fedelta.federation.memory_files import unpacked
from fedelta.params import Params
from fedelta.record.environment import peak_memory_bytes
from fedelta.runtimes.crossing import Values, answer_values, error_values, packs_of, sums_values
from fedelta.runtimes.parcels import Inbox, Outbox

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def work(run: socket, site: Callable[[], Site], parent: int) -> None:
    """Serves a run; the first thing that a worker process does, and the last.

    Args:
        run: connection to the run.
        site: makes the site that trains.
        parent: id of the run's process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run decides what Ctrl-C ends
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # otherwise the first search for garbage would copy the memory of all modules
    _end_with(parent)
    # In a thread of its own: OpenMP's threads belong to the thread that started them, and those of the thread that was
    # forked were not forked with it. With more than one arithmetic thread it would wait for them for ever.
    trainer = threading.Thread(target=_serve, args=(run, site), daemon=True)
    trainer.start()
    trainer.join()


def _serve(run: socket, make: Callable[[], Site]) -> None:
    heard: list[Values] = []
    _report_to(heard)
    bench, inbox, outbox = _Bench(make), Inbox(run), Outbox()
    while True:
        try:
            values, blobs = inbox.receive()
        except (EOFError, OSError):
            return
        if values["kind"] in ("downloads", "models"):
            bench.lay_out(values["kind"], blobs)
            continue
        try:
            result, blobs = bench.done(values, blobs)
        except BaseException as error:  # noqa: BLE001 the run raises it
            result, blobs = {"error": error_values(error)}, []
        sys.stdout.flush()
        try:
            outbox.send(run, {**result, "heard": heard, "peak_memory_bytes": peak_memory_bytes()}, blobs)
        except OSError:
            return
        heard.clear()


class _Bench:
    """What a worker has, and does with it."""

    def __init__(self, make: Callable[[], Site]) -> None:
        self._make = make
        self._site: Site | None = None
        self._downloads: list[bytes] = []
        self._decoded: dict[bytes, Params] = {}
        self._models: list[Params] = []

    def lay_out(self, kind: str, blobs: list[bytes]) -> None:
        """Takes what all orders that follow need."""
        if kind == "downloads":
            self._downloads, self._decoded, self._models = blobs, {}, []
        else:
            self._models = list(map(unpacked, blobs))

    def done(self, order: Values, blobs: list[bytes]) -> tuple[Values, list[bytes]]:
        """The values and blobs that answer an order."""
        self._site = self._site or self._make()
        if order["kind"] == "portion":
            portion = Portion(**order["portion"])
            return {"sums": sums_values(measured(self._site, portion, self._models[portion.model]))}, []
        if order["kind"] == "chunk":
            self._site.fill(Chunk(tuple(order["rows"]), order["of_test"]))
            return {}, []
        packs = packs_of(order["packs"], blobs, self._downloads)
        answers, blobs = answer_values([answer for pack in packs for answer in self._site.train(pack, self._decoded)])
        return {"answers": answers}, blobs


def _end_with(parent: int) -> None:
    """Ends this process when that of the run ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it was asked for
            os._exit(1)
    elif (process := parent_process()) is not None:

        def follow() -> None:
            process.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _report_to(heard: list[Values]) -> None:
    """From now on log records and warnings of this process are added to `heard`, and shown nowhere."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append({"logger": record.name, "level": record.levelno, "text": self.format(record)})

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        _to: object = None,
        _: object = None,
    ) -> None:
        heard.append({"warning": str(message), "category": category.__name__, "file": filename, "line": lineno})

    known = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    for logger in [logger for logger in known if logger.handlers]:
        logger.handlers, logger.propagate = [], True
    logging.root.handlers = [Listener()]
    warnings.showwarning = show  # type: ignore[assignment]  # it has names for what it does not use
