"""The records of each round, and the summary of a run.

`rounds.jsonl` holds only what the seed and the configuration determine, so that a resumed run writes the same
bytes as an undisturbed one; wall-clock times and memory live in `timings.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from statistics import fmean
from types import MappingProxyType
from typing import Any

from fedelta.data.clients import Clients
from fedelta.federation.records import RoundOutcome
from fedelta.record.files import Record
from fedelta.record.ledger import Ledger
from fedelta.record.privacy import is_void, privacy_of_round, privacy_of_run
from fedelta.record.promise import Promise
from fedelta.record.sites import TOO_FEW, summary_of_sites, too_few_sites
from fedelta.tasks.base import Measure

BYTES_PER_FLOAT32 = 4

NUM_SKIPPED = "num_skipped"
"""The key of the number of examples that could not be read and were left out; missing if there are none."""


def round_record(
    outcome: RoundOutcome,
    cumulative_bytes: int,
    loss: Measure,
    clients: Clients = Clients(),  # noqa: B008 frozen
    at_sites: Mapping[str, Record] = MappingProxyType({}),
    *,
    promise: Promise | None = None,
) -> Record:
    """One line of `rounds.jsonl`.

    Args:
        outcome: the finished round.
        cumulative_bytes: payload bytes of both directions from round 1 to this one.
        loss: the task's loss, whose name the training loss gets.
        clients: with their names, if they have any.
        at_sites: name of a site to what its own evaluation adds to its entry.
        promise: what the run guarantees; None without privacy.
    """
    uplink = sum(transfer.payload_bytes for transfer in outcome.transfers if transfer.direction == "up")
    downlink = sum(transfer.payload_bytes for transfer in outcome.transfers if transfer.direction == "down")
    evaluation = outcome.evaluation
    claims = [vars(claim) | clients.entry(claim.client_id) for claim in outcome.claims]
    sites = [vars(site) | at_sites.get(site.site, {}) for site in outcome.sites]
    at_exits = {} if evaluation is None else {name: list(values) for name, values in evaluation.by_exit.items()}
    return {
        "round": outcome.round,
        "measures": None if evaluation is None else dict(evaluation.measures),
        **({"measures_by_exit": at_exits} if at_exits else {}),
        f"train_{loss.name}": outcome.train_loss,
        "delta_norm": outcome.delta_norm,
        **({} if promise is None else privacy_of_round(outcome, promise)),
        "num_examples": outcome.num_examples,
        "synced_fraction": outcome.synced_fraction,
        "simulated_seconds": outcome.simulated_seconds,
        "cohort": list(outcome.cohort),
        **({"cohort_names": [clients.names[number] for number in outcome.cohort]} if clients.names else {}),
        **({"claims": claims} if claims else {}),
        "rejections": [vars(rejection) | clients.entry(rejection.client_id) for rejection in outcome.rejections],
        "uplink_bytes": uplink,
        "downlink_bytes": downlink,
        "cumulative_bytes": cumulative_bytes,
        **({"sites": sites} if sites else {}),
        **outcome.logged,
    }


def timing_record(round: int, wall_seconds: float, peak_memory_bytes: int, worker_peaks: Sequence[int] = ()) -> Record:
    """One line of `timings.jsonl`.

    Args:
        round: number of the round, from 1.
        wall_seconds: time from the plan of this round to its checkpoint.
        peak_memory_bytes: highest resident memory of the process so far.
        worker_peaks: that of each worker process; it includes what they share. Empty without workers.
    """
    workers = {"worker_peak_memory_bytes": list(worker_peaks)} if worker_peaks else {}
    return {"round": round, "wall_seconds": wall_seconds, "peak_memory_bytes": peak_memory_bytes, **workers}


def summary(
    records: Sequence[Record],
    timings: Sequence[Record],
    ledger: Ledger,
    primary: Measure,
    sizes: Mapping[str, Any],
    *,
    details: Mapping[str, object] | None = None,
    min_sites: int | None = None,
    promise: Promise | None = None,
) -> Record:
    """The content of `summary.json`.

    Args:
        records: lines of `rounds.jsonl`.
        timings: lines of `timings.jsonl`.
        ledger: all payloads of the run.
        primary: the primary measure of the task.
        sizes: `tuned_parameters`, the number of scalars that travel, and `total_parameters`, that of the whole model.
        details: what is measured only at the end of a run: `measures`, a map as in the records; `by_class` and
            `by_client`, name to such a map.
        min_sites: number of sites that a deployment should have in every round; None for other runs.
        promise: what the run guarantees; None without privacy.

    Returns:
        First, of a deployment with fewer than `min_sites` sites in some rounds, a sentence that says so. Sizes in
        bytes, times in seconds. `final_<measure>` is of the last evaluated round, for every measure, and
        `best_<measure>` of the best one, for the primary measure; None when no round was evaluated.
        `<measure>_by_exit` is the primary measure in the last evaluated round, lowest exit first, and
        `mean_exit_<measure>` its mean; None without exits. `void_rounds` did not count, for too few replies.
        `full_model_bytes` is what the same payloads would have weighed with the whole model in float32.
        `wall_seconds` is None where there are no `timings`.
    """
    too_few = too_few_sites(records, min_sites)
    return {
        **({TOO_FEW: too_few} if too_few else {}),
        **_final(records, primary),
        **({} if promise is None else privacy_of_run(records, promise)),
        **(details or {}),
        "rounds": len(records),
        "void_rounds": sum(is_void(record, promise) for record in records),
        "relative_cost": relative_cost(records, promise),
        **sizes,
        **_traffic(ledger),
        "full_model_bytes": full_model_bytes(sizes["total_parameters"], ledger.num_transfers),
        **summary_of_sites(records),
        "wall_seconds": wall_seconds(timings, len(records)),
        "peak_memory_bytes": max((timing.get("peak_memory_bytes") or 0 for timing in timings), default=0),
        **_workers(timings),
    }


def _traffic(ledger: Ledger) -> Record:
    """Bytes of all payloads by direction, and of the tensors in them."""
    return {
        "uplink_bytes": ledger.uplink_bytes,
        "downlink_bytes": ledger.downlink_bytes,
        "uplink_tensor_bytes": ledger.uplink_tensor_bytes,
        "downlink_tensor_bytes": ledger.downlink_tensor_bytes,
    }


def _workers(timings: Sequence[Record]) -> Record:
    """The highest memory of each worker process; nothing without workers."""
    rounds = [timing["worker_peak_memory_bytes"] for timing in timings if timing.get("worker_peak_memory_bytes")]
    peaks = [max(known) for known in zip_longest(*rounds, fillvalue=0)]
    return {"worker_peak_memory_bytes": peaks} if peaks else {}


def wall_seconds(timings: Sequence[Record], num_rounds: int) -> float | None:
    """Seconds of all rounds in `timings`; None if there are none, because `timings.jsonl` may be missing."""
    entries = [timing.get("wall_seconds") for timing in timings]
    known = [seconds for seconds in entries if isinstance(seconds, int | float)]
    return float(sum(known)) if known or not num_rounds else None


def best_of(values: Sequence[float], measure: Measure) -> float | None:
    """The best value of a measure; None without values."""
    return (max if measure.higher_is_better else min)(values, default=None)


def by_exit(records: Sequence[Record], measure: Measure) -> list[float] | None:
    """The values of a measure at each exit in the last evaluated round, lowest exit first; None without exits."""
    at_exits = [record["measures_by_exit"] for record in records if "measures_by_exit" in record]
    return at_exits[-1].get(measure.name) if at_exits else None


def relative_cost(records: Sequence[Record], promise: Promise | None = None) -> float | None:
    """The cost of FedLAMA's Eq. 9, as a share of what it is when every group travels in every round.

    That is the mean `synced_fraction` of the rounds that count; None if no record has it.
    """
    synced = [record.get("synced_fraction") for record in records if not is_void(record, promise)]
    known = [fraction for fraction in synced if fraction is not None]
    return sum(known) / len(known) if known and len(known) == len(synced) else None


def full_model_bytes(total_parameters: int, num_transfers: int) -> int:
    """Bytes of `num_transfers` payloads that each hold the whole model in float32."""
    return BYTES_PER_FLOAT32 * total_parameters * num_transfers


def _final(records: Sequence[Record], primary: Measure) -> Record:
    """The last and the best values of the measures."""
    evaluated = [record["measures"] for record in records if record["measures"] is not None]
    last = evaluated[-1] if evaluated else {primary.name: None}
    at_exits = by_exit(records, primary)
    return {
        "primary_measure": primary.name,
        **{f"final_{name}": value for name, value in last.items()},
        f"best_{primary.name}": best_of([measures[primary.name] for measures in evaluated], primary),
        f"{primary.name}_by_exit": at_exits,
        f"mean_exit_{primary.name}": None if at_exits is None else fmean(at_exits),
    }
