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
OWN_BYTES = 128 * 2**20  # of a worker that has trained nothing yet: Python's objects, which it copies as it uses them


@dataclass(frozen=True)
class Workers:
    """How many worker processes a run may have.

    Args:
        most: largest number.
        start: prepares a site for its workers, and returns what starts one.
        start_seconds: until a worker can train.
        asked_for: start them at once; otherwise only where they save time, and memory is there.
    """

    most: int
    start: Callable[[Site], Start]
    start_seconds: float
    asked_for: bool


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
        self._pace = _Pace()

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
        packs = deque(self.site.packs(plan, payloads))
        self._pace.work_of_round = sum(map(self.site.work_of, payloads))
        decoded: dict[bytes, Params] = {}
        while packs:
            if (pool := self._pool_for(packs)) is not None:
                bundles = bundled(list(packs), self.site.work_of, self._workers.most)
                yield from map(self.site.take, pool.train(bundles))
                return
            yield from map(self.site.take, self._alone(packs.popleft(), decoded))

    def sums_of(self, models: Sequence[Params]) -> list[list[Sums]]:
        """The sums of each model on the site's test data, at each exit; the workers share them, if there are any."""
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
                self._pool = Pool(self._workers.start(self.site), wanted)
        return self._pool

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
        return self._fitting(num_workers)

    def _fitting(self, num_workers: int) -> int:
        """How many of so many workers fit into memory; 0 where two do not."""
        available = available_bytes()
        if available is None or self._pace.resident_bytes is None:
            return num_workers
        # As much as training has taken here, on top of what all processes share.
        worker_bytes = max(0, peak_memory_bytes() - self._pace.resident_bytes) + OWN_BYTES
        if (fitting := min(num_workers, available // worker_bytes)) >= 2:
            return int(fitting)
        logger.info("training stays in one process: two workers would take %d MiB.", 2 * worker_bytes // 2**20)
        self._workers = replace(self._workers, most=1)
        return 0


class _Pace:
    """How fast this process trains, and from how much memory it started."""

    def __init__(self) -> None:
        self.seconds_per_work: float | None = None
        self.work_of_round = 0.0
        self.resident_bytes: int | None = None

    def timed(self, answers: Iterator[Answer], work: float) -> Iterator[Answer]:
        """`answers`, of a pack of so much work; counts only the time that they themselves take."""
        self.resident_bytes = self.resident_bytes or resident_bytes()
        seconds, started = 0.0, time.perf_counter()
        for answer in answers:
            seconds += time.perf_counter() - started
            yield answer
            started = time.perf_counter()
        pace = (seconds + time.perf_counter() - started) / work
        # The fastest pack: the first one also fills caches.
        self.seconds_per_work = min(pace, self.seconds_per_work or pace)
