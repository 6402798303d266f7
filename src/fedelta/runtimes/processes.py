"""Runs clients in worker processes of this machine, one arithmetic thread each where there are packs enough.

The site is here: what clients keep, and the packs that a round is divided into (engine/packs.py). Workers get a pack
and give its answers; where there are workers, they also evaluate (federation/measuring.py). A pack has the same bits in
whatever process it is trained, so workers may start at any moment.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fedelta.engine.filling import Chunk
from fedelta.federation.client import Site
from fedelta.federation.measuring import portions_of, sums_of, totals
from fedelta.federation.packs import Answer, Pack
from fedelta.federation.records import Reply
from fedelta.machine import available_bytes, resident_bytes
from fedelta.params import Params
from fedelta.record.environment import peak_memory_bytes
from fedelta.runtimes.bundles import bundled
from fedelta.runtimes.pool import Pool, Start
from fedelta.strategies.base import RoundPlan
from fedelta.tasks.base import Sums

logger = logging.getLogger("fedelta")

_WORTH_SECONDS = 2.0  # our choice: what a run has to save by workers before they are started unasked
_WORTH_FILLING_SECONDS = 0.25  # likewise, by workers that fill the cache and then end
OWN_BYTES = 128 * 2**20  # of a worker that has trained nothing yet: Python's objects, which it copies as it uses them


@dataclass(frozen=True)
class Workers:
    """How many worker processes a run may have.

    Args:
        most: largest number.
        start: prepares a site for its workers, and returns what starts one.
        start_seconds: until a worker can train.
        asked_for: start them at once; otherwise only where they save time, and memory is there.
        share_cache: whether features that one of them computes are there for all.
    """

    most: int
    start: Callable[[Site], Start]
    start_seconds: float
    asked_for: bool
    share_cache: bool = True


class Processes:
    """A `Runtime` that trains packs in worker processes, or in this one as long as they are not worth it.

    Args:
        site: with all clients.
        workers: how many, and how they start.
    """

    def __init__(self, site: Site, workers: Workers) -> None:
        self.site = site
        self._workers = workers
        self._may_start = False
        self._pool: Pool | None = None
        self._spare: Pool | None = None  # has filled the cache, and ends if training does not need it
        self._pace, self._filling_pace = _Pace(), _Pace()

    @contextmanager
    def at_work(self) -> Iterator[Callable[[], Sequence[int]]]:
        """A context in which workers may be started; when it ends, they have ended.

        Its value gives the highest resident memory of each worker so far, in bytes.
        """
        self._may_start = True
        try:
            yield lambda: () if self._pool is None else tuple(self._pool.peaks)
        finally:
            self._may_start = False
            if self._pool is not None:
                self._pool.close()
            self._pool = None
            self._dismiss()

    @property
    def most_workers(self) -> int:
        """The largest number of workers."""
        return self._workers.most

    def limited(self, most: int) -> Processes:
        """The same with at most so many workers, before any has started."""
        return Processes(self.site, replace(self._workers, most=min(most, self._workers.most)))

    def serving(self, site: Site) -> Processes:
        """The same for another site, before any worker has started."""
        return Processes(site, self._workers)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
        """See `Runtime.run`."""
        self._fill(self.site.chunks(payloads))
        packs = deque(self.site.packs(plan, payloads))
        self._pace.work_of_round = sum(map(self.site.work_of, payloads))
        decoded: dict[bytes, Params] = {}
        while packs:
            if (pool := self._pool_for(packs)) is not None:
                bundles = bundled(list(packs), self.site.work_of, self._workers.most)
                yield from map(self.site.take, pool.train(bundles))
                return
            yield from map(self.site.take, self._alone(packs.popleft(), decoded))
        self._dismiss()

    def sums_of(self, models: Sequence[Params]) -> list[list[Sums]]:
        """The sums of each model on the site's test data, at each exit; the workers share them, if there are any."""
        self._fill(self.site.chunks_of_test())
        self._dismiss()
        if self._pool is None:
            return sums_of(self.site, models)
        portions = portions_of(self.site, len(models))
        return totals(portions, self._pool.measure(portions, models))

    def accept(self, client_ids: Iterable[int]) -> None:
        """See `Runtime.accept`."""
        self.site.accept(client_ids)

    def snapshot(self, folder: Path, round: int) -> str:
        """See `Runtime.snapshot`."""
        return self.site.snapshot(folder, round)

    def restore(self, folder: Path, mark: str) -> None:
        """See `Runtime.restore`."""
        self.site.restore(folder, mark)

    def _alone(self, pack: Pack, decoded: dict[bytes, Params]) -> Iterator[Answer]:
        """The answers of a pack that this process trains."""
        return self._pace.timed(self.site.train(pack, decoded), sum(map(self.site.work_of, pack.payloads)))

    def _pool_for(self, packs: deque[Pack]) -> Pool | None:
        """The pool that is to train the rest of a round; None: this process."""
        if self._pool is None and self._may_start and len(packs) > 1:
            wanted = self._workers.most if self._workers.asked_for else self._worthwhile(packs)
            if wanted:
                self._pool = self._hired(wanted)
        return self._pool

    def _hired(self, wanted: int) -> Pool:
        """A pool of so many workers: those that have filled the cache, or new ones."""
        if self._spare is None or len(self._spare.peaks) != wanted:
            self._dismiss()
            return Pool(self._workers.start(self.site), wanted)
        pool, self._spare = self._spare, None
        return pool

    def _dismiss(self) -> None:
        """Ends workers that are not known to be worth it."""
        if self._spare is not None:
            self._spare.close()
        self._spare = None

    def _fill(self, chunks: Iterable[Chunk]) -> None:
        """Computes features for the cache, in workers where they save time."""
        waiting = deque(chunks if self._workers.share_cache else ())
        while waiting:
            if (pool := self._pool_to_fill(waiting)) is not None:
                pool.fill(waiting)
                return
            chunk = waiting.popleft()
            self._filling_pace.begin()
            started = time.perf_counter()
            self.site.fill(chunk)
            self._filling_pace.note(time.perf_counter() - started, len(chunk.rows))

    def _pool_to_fill(self, chunks: deque[Chunk]) -> Pool | None:
        """The pool that is to compute these chunks; None: this process.

        Workers that were not asked for are kept only if training turns out to need them as well.
        """
        if self._pool is None and self._may_start and self._workers.asked_for:
            self._pool = self._hired(self._workers.most)
        if self._pool is None and (num_workers := self._worth_filling(chunks)):
            self._spare = self._hired(num_workers)
        return self._pool or self._spare

    def _worth_filling(self, chunks: deque[Chunk]) -> int:
        """How many workers would save enough time by computing these chunks, and fit into memory; 0 for none."""
        pace, num_workers = self._filling_pace, min(self._workers.most, len(chunks))
        if not self._may_start or num_workers < 2 or pace.seconds_per_work is None:
            return 0
        seconds = pace.seconds_per_work * sum(len(chunk.rows) for chunk in chunks)
        if seconds * (1 - 1 / num_workers) - self._workers.start_seconds < _WORTH_FILLING_SECONDS:
            return 0
        return pace.fitting(num_workers)

    def _worthwhile(self, packs: deque[Pack]) -> int:
        """How many workers would save enough time, and fit into memory; 0 for none."""
        num_workers = min(self._workers.most, len(packs))
        if num_workers < 2 or self._pace.seconds_per_work is None:
            return 0
        left = sum(self.site.work_of(client_id) for pack in packs for client_id in pack.payloads)
        later = self._pace.work_of_round * (self.site.num_rounds - packs[0].round)
        seconds = self._pace.seconds_per_work * (left + later)
        if seconds * (1 - 1 / num_workers) - self._workers.start_seconds < _WORTH_SECONDS:
            return 0
        if not (fitting := self._pace.fitting(num_workers)):
            needed = 2 * self._pace.worker_bytes // 2**20
            logger.info("training stays in one process: two workers would take %d MiB.", needed)
            self._workers = replace(self._workers, most=1)
        return fitting


class _Pace:
    """How fast this process works, and what memory it takes for that."""

    def __init__(self) -> None:
        self.seconds_per_work: float | None = None
        self.work_of_round = 0.0
        self.resident_bytes: int | None = None

    def timed(self, answers: Iterator[Answer], work: float) -> Iterator[Answer]:
        """`answers`, of a pack of so much work; counts only the time that they themselves take."""
        self.begin()
        seconds, started = 0.0, time.perf_counter()
        for answer in answers:
            seconds += time.perf_counter() - started
            yield answer
            started = time.perf_counter()
        self.note(seconds + time.perf_counter() - started, work)

    def begin(self) -> None:
        """Remembers the memory of the process before its first work."""
        self.resident_bytes = self.resident_bytes or resident_bytes()

    def note(self, seconds: float, work: float) -> None:
        """Takes notice of work that is done. The fastest counts: the first also allocates memory."""
        pace = seconds / work
        self.seconds_per_work = min(pace, self.seconds_per_work or pace)

    def fitting(self, num_workers: int) -> int:
        """How many of so many workers fit into memory; 0 where two do not."""
        available = available_bytes()
        if available is None or self.resident_bytes is None:
            return num_workers
        fitting = min(num_workers, available // self.worker_bytes)
        return int(fitting) if fitting >= 2 else 0

    @property
    def worker_bytes(self) -> int:
        """What a worker takes: as much as the work has taken here, on top of what all processes share."""
        return max(0, peak_memory_bytes() - (self.resident_bytes or 0)) + OWN_BYTES
