"""The top of the page of several runs: a table of key figures, and the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.privacy.shown import shown_epsilon
from fedelta.record.files import flatten
from fedelta.record.history import History
from fedelta.record.numbers import UNKNOWN, capitalised, count, duration, mebibytes, percent, shown
from fedelta.record.privacy import NO_GUARANTEE
from fedelta.report.elements import Table
from fedelta.report.headline import is_cheaper, saving


@dataclass(frozen=True)
class SideBySide:
    """The content of side_by_side.html.

    Args:
        num_runs: number of runs.
        figures: one row per run.
        differences: one column per run, one row per setting that differs; None if none does.
    """

    template: ClassVar[str] = "side_by_side.html"
    num_runs: int
    figures: Table
    differences: Table | None


def side_by_side(runs: Sequence[History]) -> SideBySide:
    """The section for `runs`, which have the same primary measure."""
    has_costs, has_exits = any(map(is_cheaper, runs)), any(run.by_exit for run in runs)
    is_private = any(run.promise is not None for run in runs)
    header = ["Run", "Rounds", capitalised(runs[0].primary.label), "Best", "Tuned"]
    header += ["MiB per client and round, down and up", "MiB in total", "MiB if fully tuned", "Saving", "Time"]
    header += ["Epsilon"] if is_private else []
    header += ["Relative cost"] if has_costs else []
    header += ["Mean over exits"] if has_exits else []
    rows = [_row(run, is_private=is_private, has_costs=has_costs, has_exits=has_exits) for run in runs]
    return SideBySide(len(runs), Table(header, rows, numbers_from=1), _differences(runs))


def _row(run: History, *, is_private: bool, has_costs: bool, has_exits: bool) -> list[str]:
    measure = run.primary
    return [
        run.name,
        _rounds(run),
        shown(run.final, measure),
        shown(run.best, measure),
        count(run.model.get("tuned_parameters")),
        mebibytes(run.bytes_per_client_round),
        mebibytes(run.ledger.total_bytes),
        mebibytes(run.full_model_bytes),
        saving(run),
        duration(run.wall_seconds),
        *([_epsilon(run)] if is_private else []),
        *([percent(run.relative_cost)] if has_costs else []),
        *([shown(run.mean_over_exits, measure)] if has_exits else []),
    ]


def _epsilon(run: History) -> str:
    """Epsilon with the unit and delta; what guarantees nothing says so."""
    promise = run.promise
    if promise is None:
        return UNKNOWN
    if not promise.is_kept:
        return NO_GUARANTEE
    return f"{shown_epsilon(run.epsilon)} ({promise.unit}, delta {promise.delta:g})"


def _rounds(run: History) -> str:
    """The number of rounds, and what there is to say about them."""
    remarks = [
        *([] if run.finished else ["unfinished"]),
        *(["some on too few sites"] if run.too_few_sites else []),
        *(["privacy budget spent"] if run.stopped else []),
    ]
    return f"{len(run.rounds)} ({', '.join(remarks)})" if remarks else f"{len(run.rounds)}"


def _differences(runs: Sequence[History]) -> Table | None:
    configs = [dict(flatten(run.config)) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = ([key, *(config.get(key, UNKNOWN) for config in configs)] for key in keys)
    different = [row for row in rows if len(set(row[1:])) > 1]
    return Table(["Setting", *(run.name for run in runs)], different) if different else None
