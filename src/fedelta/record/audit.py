"""Checks whether the files of a run directory are consistent; the report shows the result at its top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedelta.errors import CheckpointError, FormatError
from fedelta.record import runlog
from fedelta.record.checkpoint import load
from fedelta.record.crosscheck import by_clients, by_confusion
from fedelta.record.files import Record
from fedelta.record.ledger import Ledger
from fedelta.record.origin import changed_files, other_settings, settings_of
from fedelta.record.promise import Promise
from fedelta.record.rundir import RunDirectory
from fedelta.record.sites import TOO_FEW, by_sites, min_sites_of
from fedelta.tasks.base import Measure
from fedelta.tasks.details import Details

_NUM_SHOWN = 3
_SIZES = ("tuned_parameters", "total_parameters")  # measures of the finished model, which are not in the records
# Measured by the clock, or from a log that may be lost.
_UNCHECKED = frozenset({"wall_seconds", "peak_memory_bytes"})


@dataclass(frozen=True)
class End:
    """The files that are written when a run is finished.

    Args:
        summary: content of `summary.json`; empty while the run is unfinished.
        details: detailed measures of the finished model, if known.
        personalization: content of `personalization.json`; empty if it does not exist.
        promise: content of `privacy.json`, which is written at the beginning; None without privacy.
    """

    summary: Record
    details: Details | None
    personalization: Record
    promise: Promise | None = None


def misfits(
    run: RunDirectory,
    config: Mapping[str, Any],
    rounds: Sequence[Record],
    ledger: Ledger,
    *,
    end: End,
    primary: Measure,
) -> tuple[str, ...]:
    """One sentence per inconsistency in a run directory; empty if there is none.

    Args:
        run: the directory.
        config: content of `config.toml`; Any: TOML values.
        rounds: lines of `rounds.jsonl`.
        ledger: of the run.
        end: the files of the finished run.
        primary: the primary measure of the run.
    """
    return (
        *_by_checkpoint(run, config, len(rounds), is_finished=bool(end.summary)),
        *_by_ledger(rounds, ledger),
        *by_sites(rounds)[:_NUM_SHOWN],
        *_by_summary(rounds, ledger, end, primary, min_sites_of(config)),
        *by_confusion(end.details)[:_NUM_SHOWN],
        *by_clients(end.personalization, primary)[:_NUM_SHOWN],
    )


def _by_checkpoint(run: RunDirectory, config: Mapping[str, Any], num_rounds: int, *, is_finished: bool) -> list[str]:
    try:
        checkpoint = load(run.checkpoint)
    except FormatError:
        return []  # written by another version, so it cannot be compared
    except CheckpointError as error:
        return [error.message]
    problems = run.changed_logs(checkpoint, run.seals())
    if checkpoint.origin.settings:
        problems += other_settings(checkpoint.origin.settings, settings_of(config))
    problems += changed_files(run.path, checkpoint.origin)
    if is_finished and checkpoint.round != num_rounds:
        problems.append(f"the checkpoint is that of round {checkpoint.round}, `rounds.jsonl` has {num_rounds} rounds")
    return problems


def _by_ledger(rounds: Sequence[Record], ledger: Ledger) -> list[str]:
    """Messages about rounds whose bytes differ from those of the ledger."""
    problems, total = [], 0
    for record in rounds:
        sent = ledger.rounds.get(record["round"])
        up, down = (0, 0) if sent is None else (sent.uplink_bytes, sent.downlink_bytes)
        total += up + down
        expected = {"uplink_bytes": up, "downlink_bytes": down, "cumulative_bytes": total}
        if different := [key for key, value in expected.items() if record.get(key, value) != value]:
            key = different[0]
            problems.append(
                f"round {record['round']}: `{key}` is {record[key]:,} in `rounds.jsonl`, the rows of `ledger.jsonl` "
                f"add up to {expected[key]:,}"
            )
    return problems[:_NUM_SHOWN]


def _by_summary(
    rounds: Sequence[Record], ledger: Ledger, end: End, primary: Measure, min_sites: int | None
) -> list[str]:
    """Messages about figures of the summary that differ from the records."""
    summary = end.summary
    sizes = {key: value for key, value in summary.items() if key in _SIZES}
    if len(sizes) < len(_SIZES):
        return []
    expected = runlog.summary(rounds, (), ledger, primary, sizes, min_sites=min_sites, promise=end.promise)
    wrong = [
        f"`{key}` is {summary.get(key)!r} in `summary.json`, the records of the rounds make it {value!r}"
        for key, value in expected.items()
        if (key in summary or key in {TOO_FEW, "epsilon"}) and key not in _UNCHECKED and summary.get(key) != value
    ]
    return wrong[:_NUM_SHOWN]
