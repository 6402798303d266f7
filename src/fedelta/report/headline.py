"""The top of the page of one run: its methods, its progress and its key figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.privacy.shown import shown_epsilon
from fedelta.record.history import History
from fedelta.record.numbers import (
    UNKNOWN,
    bare,
    capitalised,
    count,
    duration,
    percent,
    shown,
    size,
    times,
)
from fedelta.record.privacy import NO_GUARANTEE, why_unknown
from fedelta.record.status import read_status
from fedelta.report.exits import read_exits

# Of alternatives the first that the configuration has.
_SETTING = (
    ("model.source", "model.architecture.model_type"),
    ("tuning.name",),
    ("strategy.name",),
    ("data.source",),
    ("partition.name",),
)


@dataclass(frozen=True)
class Tile:
    """A key figure: name, value and remark."""

    name: str
    value: str
    remark: str


@dataclass(frozen=True)
class Headline:
    """The content of headline.html.

    Args:
        name: of the run.
        setting: model, methods and data.
        warnings: on rounds with too few sites, noise that guarantees nothing, a spent privacy budget, and settings that
            changed.
        unfinished: progress of an unfinished run; empty for a finished one.
        progress: rounds, clients and date.
        tiles: six to ten key figures.
    """

    template: ClassVar[str] = "headline.html"
    name: str
    setting: Sequence[str]
    warnings: Sequence[str]
    unfinished: str
    progress: str
    tiles: Sequence[Tile]


def headline(run: History) -> Headline:
    """The headline of `run`."""
    measure = run.primary
    name = capitalised(f"{run.measured_on} {measure.label}")
    tiles = [
        _measure_tile(name, run),
        *_exit_tiles(run),
        *_privacy_tiles(run),
        Tile("Tuned parameters", count(run.model.get("tuned_parameters")), _tuned_share(run)),
        Tile("Per client and round", size(run.bytes_per_client_round), "down and up together"),
        Tile("Sent in total", size(run.ledger.total_bytes), _directions(run)),
        Tile("Saving", saving(run), f"full fine-tuning: {size(run.full_model_bytes)}"),
        Tile("Time", duration(run.wall_seconds), f"peak memory {size(run.peak_memory_bytes)}"),
    ]
    setting = [str(value) for paths in _SETTING if (value := _first(run, paths)) is not None]
    without = "" if run.promise is None or run.promise.is_kept else why_unknown(run.promise)
    warnings = [text for text in (run.too_few_sites, without, run.stopped, *run.departures) if text]
    return Headline(run.name, setting, warnings, _unfinished(run), _progress(run), tiles)


def saving(run: History) -> str:
    """A text on how many times as much full fine-tuning would have sent."""
    full, sent = run.full_model_bytes, run.ledger.total_bytes
    if not full or not sent:
        return UNKNOWN
    return times(full / sent)


def is_cheaper(run: History) -> bool:
    """Whether some groups travelled less often than every round."""
    return run.relative_cost is not None and run.relative_cost < 1


def _first(run: History, paths: Sequence[str]) -> object:
    return next((value for path in paths if (value := run.value(path)) is not None), None)


def _measure_tile(name: str, run: History) -> Tile:
    """The tile of the primary measure; a unit of several words stands below the value."""
    measure = run.primary
    if " " not in measure.unit:
        return Tile(name, shown(run.final, measure), f"best {shown(run.best, measure)}")
    return Tile(name, bare(run.final, measure), f"{measure.unit}; best {bare(run.best, measure)}")


def _exit_tiles(run: History) -> list[Tile]:
    """Tiles with the mean over the exits and over their costs; empty without exits."""
    exits = read_exits(run)
    if exits is None:
        return []
    measure, num_exits = exits.measure, len(exits.last)
    exits_in_words = f"{count(num_exits)} exit" if num_exits == 1 else f"{count(num_exits)} exits"
    ends = f"{bare(exits.last[0], measure)} to {shown(exits.last[-1], measure)}"
    remark = "cost of exits not known" if exits.flops_area is None else f"mean {measure.label} over budgets"
    return [
        Tile("Mean over exits", shown(run.mean_over_exits, measure), f"{exits_in_words}, {ends}"),
        Tile("Area over FLOPs", shown(exits.flops_area, measure), remark),
    ]


def _privacy_tiles(run: History) -> list[Tile]:
    """Tiles with the epsilon so far and the noise; empty without privacy."""
    promise = run.promise
    if promise is None:
        return []
    epsilon = shown_epsilon(run.epsilon if run.rounds else 0.0) if promise.is_kept else "none"
    protects = {"example": "for examples", "client": "for clients", "local": "for clients, local"}[promise.unit]
    at_delta = f"{protects}, delta {promise.delta:g}" if promise.is_kept else NO_GUARANTEE
    source = {"seeded": "from the seed: simulation only", "secure": "from secret keys"}[promise.randomness]
    return [
        Tile("Epsilon", epsilon, at_delta),
        Tile("Noise multiplier", f"{promise.noise_multiplier:.4g}", source),
    ]


def _unfinished(run: History) -> str:
    if run.finished:
        return ""
    planned, status = run.value("strategy.num_rounds"), read_status(run.path)
    progress = f"Unfinished: {len(run.rounds)} of {planned} rounds." if planned else "Unfinished."
    if status is None or status.state not in ("waiting", "failed"):
        return progress
    return f"{progress} {capitalised(status.state)}: {status.text}"


def _progress(run: History) -> str:
    cohort_size, about = run.cohort_size, "about " if run.draws_by_chance else ""
    num_clients = len(run.partition.counts) if run.partition else None
    of_all = f" of {count(num_clients)}" if num_clients else ""
    clients = "client" if (num_clients or cohort_size) == 1 else "clients"
    num_rounds = "1 round" if len(run.rounds) == 1 else f"{len(run.rounds)} rounds"
    rounds = f"{num_rounds}, " if run.finished else ""
    return f"{rounds}{about}{cohort_size}{of_all} {clients} a round, begun {_date(run)}"


def _date(run: History) -> str:
    """The day, hour and minute of an ISO 8601 date."""
    return str(run.environment.get("date", UNKNOWN))[:16].replace("T", " ")


def _tuned_share(run: History) -> str:
    tuned, total = run.model.get("tuned_parameters"), run.model.get("total_parameters")
    return f"{percent(tuned / total, 2)} of {count(total)}" if tuned is not None and total else UNKNOWN


def _directions(run: History) -> str:
    directions = f"{size(run.ledger.downlink_bytes)} down, {size(run.ledger.uplink_bytes)} up"
    return f"{directions}; relative cost {percent(run.relative_cost)}" if is_cheaper(run) else directions
