"""`fedelta.compare`: runs the search, then the cells, and rewrites tables and page after each of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from fedelta.comparison.cells import Plan, by_labels, make_plan, name_of
from fedelta.comparison.claims import Claims, joined
from fedelta.comparison.columns import IS_BEST, REASON, RUN, STATE, Column, measures, share
from fedelta.comparison.directory import ASKED, CellRun, ComparisonDirectory, default_out
from fedelta.comparison.frames import FAILED, FINISHED, WAITING, Row, cells_frame, curves_frame, one_line, trials_frame
from fedelta.comparison.page import render
from fedelta.comparison.pool import Event, run_jobs
from fedelta.comparison.reading import Reading, read_run
from fedelta.comparison.request import read_request
from fedelta.comparison.result import Comparison
from fedelta.comparison.tables import cells_csv, search_csv, table_csv, table_md, table_tex
from fedelta.config import Config
from fedelta.errors import ConfigError, RunError
from fedelta.grid import SEED
from fedelta.plugins import refuse_missing
from fedelta.record.rundir import CONFIG

logger = logging.getLogger("fedelta")

OnEvent = Callable[[Event, "Tally"], None]
# With many groups the page takes a second or two; while cells run, at most this share of the time is spent on it.
_PAGE_SHARE = 0.1
_DIVERGED = "RoundError"


@dataclass(frozen=True)
class Tally:
    """The progress of a comparison, trials of the search included.

    Args:
        num_cells: cells and trials.
        num_ended: those that have finished or failed.
        num_rounds: rounds of all of them.
        rounds_done: finished rounds; all rounds of a failed cell count.
    """

    num_cells: int
    num_ended: int
    num_rounds: int
    rounds_done: int


def compare(
    config: str | Path | Config,
    over: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    *,
    overrides: Iterable[str] = (),
    processes: int | None = None,
    on_event: OnEvent | None = None,
) -> Comparison:
    """Runs a grid of experiments, or continues it, and writes its tables and page.

    Args:
        config: a TOML file, with or without a table `[compare]`, or a configuration.
        over: axes: a key of the configuration to its values, or a name to named choices, each a mapping of keys to
            values. An axis replaces one with the same name in the file; others follow those of the file.
        out: the directory of the comparison; see `default_out`.
        overrides: `section.key=value` strings, applied to the configuration before any axis.
        processes: number of runs at a time; None: as many as cores and memory allow, or one on each GPU.
        on_event: called with each event of a cell and the progress of the comparison.

    Returns:
        The cells and groups as pandas frames. A cell that failed is in `failures` and does not stop the others.

    Raises:
        InputError: a configuration is invalid, or `out` holds other files; nothing is written.
    """
    path = default_out(config) if out is None else Path(out)
    directory = ComparisonDirectory(path)
    refuse_missing(directory.plugins, f"comparison {str(path)!r}")
    plan = make_plan(read_request(config, over, overrides))
    work = _Work(plan, directory, processes, on_event)
    work.directory.refuse_foreign()
    work.find_jobs()
    work.directory.make()
    with joined(work.directory.claims, plan.request.to_toml()) as claims:
        if not claims.others():
            work.directory.clean(claims.since_ns)
        _warn_if_narrower(plan, path)
        work.directory.write(ASKED, plan.request.to_toml())
        work.directory.write_plugins()
        try:
            work.run_all(claims)
        finally:
            # After Ctrl-C too, so that the finished cells have their page.
            work.write_all(claims)
    return work.comparison()


@dataclass
class _Work:
    """A comparison in progress; its fields grow with every finished run."""

    plan: Plan
    directory: ComparisonDirectory
    processes: int | None
    on_event: OnEvent | None
    trials: list[CellRun] = field(default_factory=list, init=False)
    jobs: list[CellRun] = field(default_factory=list, init=False)  # of the cells for which the searched value is known
    readings: dict[Path, Reading] = field(default_factory=dict, init=False)
    unreadable: dict[Path, str] = field(default_factory=dict, init=False)  # why a finished run was not read
    rounds: dict[str, int] = field(default_factory=dict, init=False)  # by the name of the cell
    num_ended: int = field(default=0, init=False)
    next_page: float = field(default=0.0, init=False)  # seconds of the monotonic clock

    def find_jobs(self) -> None:
        """Looks up the directories of all trials, and of the cells whose searched value is known; writes nothing.

        Raises:
            RunError: some of them hold other configurations.
        """
        self.trials = self.directory.jobs(self.plan.trials)
        self.jobs = self.directory.jobs(self.plan.cells(self._chosen()))

    def run_all(self, claims: Claims) -> None:
        """Runs the search, then the cells; ends when others run what is left of them, and says so."""
        self.run(self.trials, claims)
        self.find_jobs()
        self.num_ended += len(self.plan.points) - len(self.jobs)  # cells for which the search found no value
        self.run(self.jobs, claims, waits=False)
        if num_open := sum(not job.ended_since(claims.since_ns) for job in self.jobs):
            logger.warning(
                "other processes still run %s of this comparison; the last one to end completes the tables.",
                "1 cell" if num_open == 1 else f"{num_open} cells",
            )

    def run(self, jobs: Sequence[CellRun], claims: Claims, *, waits: bool = True) -> None:
        """Runs the jobs that are not settled, all cells of a seed before those of the next; see `run_jobs`."""
        for job in jobs:
            if _is_settled(job):
                self._end(job)
        waiting = [job for job in jobs if not _is_settled(job)]
        highest = max((reading.peak_memory_bytes for reading in self.readings.values()), default=0)
        # Seed by seed, so that the table has all rows as early as possible.
        seeds = [axis.labels for axis in self.plan.request.grid.axes if axis.name == SEED]
        waiting.sort(key=lambda job: seeds[0].index(job.cell.labels[SEED]) if seeds else 0)
        with closing(
            run_jobs(waiting, claims=claims, waits=waits, processes=self.processes, highest_peak=highest)
        ) as events:
            for event in events:
                self._take(event)

    def comparison(self) -> Comparison:
        """The results so far."""
        request, primary = self.plan.request, self.plan.primary
        axes = tuple(axis.name for axis in request.grid.axes)
        keys = axes if request.searched is None else (*axes, request.searched)
        cells, trials = self._cell_rows(), self._trial_rows()
        shown = self._measures()
        finished = [(job.cell.labels, self.readings[job.path]) for job in self.jobs if job.path in self.readings]
        return Comparison(
            name=request.name,
            path=self.directory.path,
            cell_axes=axes,
            task_axes=request.task_axes,
            searched=request.searched,
            primary=primary,
            measures=shown,
            frame=cells_frame(cells, keys, shown, request.axes),
            trials=trials_frame(trials, keys, shown),
            curves=curves_frame([(labels, reading.curve) for labels, reading in finished], axes, primary.name),
            citations=frozenset(reading.citations for _, reading in finished),
            asked=request.to_toml(),
        )

    def _cell_rows(self) -> list[Row]:
        """All cells in the order of the grid, including those without a value of the searched key."""
        rows = {name_of(job.cell.labels): self._row(job) for job in self.jobs}
        return [rows.get(name_of(labels)) or self._row_without_value(labels) for labels in self.plan.points]

    def _row_without_value(self, labels: Mapping[str, str]) -> Row:
        """The row of a cell whose search is unfinished or found no value."""
        reason = self._lack(labels)
        return {**labels, STATE: WAITING if reason is None else FAILED, REASON: reason, RUN: ""}

    def _trial_rows(self) -> list[Row]:
        chosen, search = self._chosen(), self.plan.request.grid.search
        labels = [by_labels(search, job.cell.labels) for job in self.trials]
        return [
            {**self._row(job), IS_BEST: by in chosen and chosen[by] == job.cell.value}
            for job, by in zip(self.trials, labels, strict=True)
        ]

    def _measures(self) -> tuple[Column, ...]:
        """The columns of the primary measure, at exits too if a run has exits, and of the fractions beside it."""
        primary, *at_exits = measures(self.plan.primary)
        names = [column.name for column in at_exits]
        has_exits = any(reading.figures[name] is not None for reading in self.readings.values() for name in names)
        shares = dict.fromkeys(measure for reading in self.readings.values() for measure in reading.shares)
        return (primary, *(at_exits if has_exits else ()), *map(share, shares))

    def write_all(self, claims: Claims) -> None:
        """Replaces tables and page, again if cells have ended elsewhere meanwhile: the last process writes them all."""
        open_jobs: list[CellRun] | None = None
        while open_jobs is None or any(job.ended_since(claims.since_ns) for job in open_jobs):
            open_jobs = [job for job in self.jobs if not job.ended_since(claims.since_ns)]
            self.write_tables()
            self.write_page()
            for job in open_jobs:
                job.look_anew()

    def write_tables(self) -> None:
        """Replaces the tables."""
        comparison = self.comparison()
        self.directory.write("table.csv", table_csv(comparison))
        self.directory.write("table.md", table_md(comparison))
        self.directory.write("table.tex", table_tex(comparison))
        self.directory.write("cells.csv", cells_csv(comparison))
        if not comparison.trials.empty:
            self.directory.write("search.csv", search_csv(comparison))

    def write_page(self) -> None:
        """Replaces the page."""
        started = time.monotonic()
        self.directory.write("report.html", render(self.comparison()))
        self.next_page = time.monotonic() + (time.monotonic() - started) / _PAGE_SHARE

    def _take(self, event: Event) -> None:
        self.rounds[event.job.cell.name] = event.round
        if event.kind in ("finished", "failed"):
            self._end(event.job)
            self.write_tables()
            if time.monotonic() >= self.next_page:
                self.write_page()
        if self.on_event is not None:
            self.on_event(event, self._tally())

    def _end(self, job: CellRun) -> None:
        """Counts a cell that has ended."""
        self._reading(job)
        self.rounds[job.cell.name] = job.cell.config.strategy.num_rounds
        self.num_ended += 1

    def _row(self, job: CellRun) -> Row:
        """The row of a cell or a trial in its frame; reads its run if it has just finished."""
        reading, reason = self._reading(job), self.unreadable.get(job.path, job.reason())
        key = self.plan.request.searched
        return {
            **job.cell.labels,
            **({} if key is None else {key: job.cell.value}),
            **({} if reading is None else reading.figures),
            STATE: FINISHED if reading is not None else WAITING if reason is None else FAILED,
            REASON: reason,
            RUN: f"{job.path.parent.name}/{job.path.name}",
        }

    def _reading(self, job: CellRun) -> Reading | None:
        """The figures of a job's finished run; None if it is unfinished or cannot be read."""
        if job.is_finished and job.path not in self.readings and job.path not in self.unreadable:
            try:
                self.readings[job.path] = read_run(job.path)
            except RunError as error:  # one run of an older version must not stop the other cells
                self.unreadable[job.path] = f"{type(error).__name__}: {error}"
                logger.warning("a finished run is left out of the comparison: %s", error)
        return self.readings.get(job.path)

    def _chosen(self) -> dict[tuple[str, ...], object]:
        """Result of `by_labels` to the best value of the searched key, for searches whose trials are all settled."""
        search = self.plan.request.grid.search
        if search is None:
            return {(): None}
        searches: dict[tuple[str, ...], list[CellRun]] = {}
        for job in self.trials:
            searches.setdefault(by_labels(search, job.cell.labels), []).append(job)
        best = {by: self._best(trials) for by, trials in searches.items() if all(map(_is_settled, trials))}
        return {by: job.cell.value for by, job in best.items() if job is not None}

    def _best(self, trials: Sequence[CellRun]) -> CellRun | None:
        """The trial with the best primary measure; ties go to the lowest loss, then to the first."""
        primary = self.plan.primary
        sign = 1 if primary.higher_is_better else -1
        finished = [(job, reading) for job in trials if (reading := self._reading(job)) is not None]
        ranked = [
            (sign * value, -reading.loss, job)
            for job, reading in finished
            if (value := reading.figures[primary.name]) is not None
        ]
        return max(ranked, key=lambda rank: rank[:2], default=(None, None, None))[2]

    def _lack(self, labels: Mapping[str, str]) -> str | None:
        """Why a cell has no value of the searched key; None while the search may still find one."""
        search, key = self.plan.request.grid.search, self.plan.request.searched
        by = by_labels(search, labels)
        trials = [job for job in self.trials if by_labels(search, job.cell.labels) == by]
        lost = [job for job in trials if job.reason() is not None and not _is_settled(job)]
        if not lost and all(map(_is_settled, trials)) and self._best(trials) is None:
            lost = trials
        if not lost:
            return None
        return f"SearchError: no value of `{key}` was chosen, because a trial failed: {one_line(lost[0].reason())}"

    def _tally(self) -> Tally:
        planned = [job.cell.config.strategy.num_rounds for job in self.trials] + list(self.plan.num_rounds.values())
        return Tally(len(planned), self.num_ended, sum(planned), sum(self.rounds.values()))


def _warn_if_narrower(plan: Plan, path: Path) -> None:
    """Warns if the tables will lose cells that they show now."""
    if not (path / ASKED).exists():
        return
    try:
        before = make_plan(read_request(path / ASKED))
    except ConfigError:  # a recipe or a model that is gone
        return
    gone = len(before.num_rounds.keys() - plan.num_rounds.keys())
    if gone:
        logger.warning(
            "the tables in %s will not show %s of the last comparison there; the runs stay, and the tables show them "
            "again when they are asked for.",
            path,
            "1 cell" if gone == 1 else f"{gone} cells",
        )


def _is_settled(job: CellRun) -> bool:
    """Whether a job need not run: it has finished, or it is a trial that diverged and would diverge again."""
    diverged = job.cell.is_trial and (job.reason() or "").startswith(_DIVERGED)
    # Only its run directory shows which configuration diverged.
    return job.is_finished or (diverged and (job.path / CONFIG).exists())
