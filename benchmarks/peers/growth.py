"""fedelta alone, as cohorts, clients and workers grow: rounds of a real run, in turns, and the memory of each.

A million images are divided among more and more clients, of which ten take part in a round with one step each: what is
done stays the same. Larger and larger cohorts come from the same 10,000 clients. Workers share W1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.memory import MIB, Watch
from benchmarks.peers.side import CORES, Running, running
from benchmarks.peers.works import TINY, WORKS, Work

NUM_IMAGES = 1_000_000
COHORTS = (10, 100, 1_000)
CLIENTS = (100, 1_000, 10_000, 100_000)
WARM_UP = 2


@dataclass(frozen=True)
class Point:
    """One run.

    Args:
        title: what grows.
        work: what is done.
        workers: of fedelta; 0: as many as it finds right.
    """

    title: str
    work: Work
    workers: int = 0

    def as_record(self) -> dict[str, object]:
        """For JSON."""
        cohort = self.work.cohort or self.work.num_clients
        return {
            "title": self.title,
            "clients": self.work.num_clients,
            "cohort": cohort,
            "workers": self.workers or "auto",
        }


def points() -> Iterator[Point]:
    """All runs."""
    for cohort in COHORTS:
        yield Point("cohort, tiny CNN, 1 step", _tiny(10_000, cohort))
    for clients in CLIENTS:
        yield Point("clients, tiny CNN, 1 step", _tiny(clients, 10))
    for workers in sorted({1, 2, CORES}):
        if workers <= CORES:
            yield Point("workers, W1", WORKS["W1"], workers)


def grow(cache: Path, repeats: int, tell: Callable[[str], None]) -> list[dict[str, object]]:
    """The figures of each run: memory while it is alone, then seconds of rounds in turns."""
    rows, contexts = [], []
    (cache / "logs").mkdir(parents=True, exist_ok=True)
    for number, point in enumerate(points()):
        folder = cache / "works" / f"growth-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "work.json").write_text(json.dumps(point.work.as_record()))
        contexts.append((folder, point.workers))
        rows.append({**point.as_record(), "seconds": [], "peak_mib": _peak_mib(cache, folder, point.workers)})
        tell(f"{point.title}, {rows[-1]['clients']:,} clients: {rows[-1]['peak_mib']:.0f} MiB")
    with ExitStack() as stack:
        sides = [stack.enter_context(_run(cache, *context)) for context in contexts]
        for side in sides:
            side.hear()
        for number in range(WARM_UP + repeats):
            for side, row in zip(sides, rows, strict=True):
                seconds = side.round()
                if number >= WARM_UP:
                    row["seconds"].append(seconds)
    return rows


def _tiny(num_clients: int, cohort: int) -> Work:
    return Work("", TINY, "full", num_clients, NUM_IMAGES // num_clients, 1, 10, 0.05, cohort=cohort, local_steps=1)


def _peak_mib(cache: Path, folder: Path, workers: int) -> float:
    with _run(cache, folder, workers) as side:
        with Watch(side.process.pid) as watch:
            side.hear()
            for _ in range(WARM_UP):
                side.round()
        return watch.peak_bytes / MIB


def _run(cache: Path, folder: Path, workers: int) -> AbstractContextManager[Running]:
    return running("fedelta", folder, cache, cache / "logs" / "growth.log", workers)
