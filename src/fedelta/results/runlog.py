"""What is written about each round and about the whole run.

`rounds.jsonl` holds only what the seed and the configuration determine, so that a resumed run writes the same
bytes as an undisturbed one; wall-clock times and memory live in `timings.jsonl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from fedelta.federation.records import RoundOutcome
from fedelta.results.files import Record
from fedelta.results.ledger import Ledger

BYTES_PER_FLOAT32 = 4


def round_record(outcome: RoundOutcome, cumulative_bytes: int) -> Record:
    """One line of `rounds.jsonl`.

    Args:
        outcome: the finished round.
        cumulative_bytes: payload bytes of both directions from round 1 to this one.
    """
    uplink = sum(each.payload_bytes for each in outcome.transfers if each.direction == "up")
    downlink = sum(each.payload_bytes for each in outcome.transfers if each.direction == "down")
    evaluation = outcome.evaluation
    measures, by_exit = (evaluation.measures, evaluation.by_exit) if evaluation else ({}, {})
    return {
        "round": outcome.round,
        "accuracy": measures.get("accuracy"),
        **{f"{name}_by_exit": list(values) for name, values in by_exit.items()},
        "test_loss_nats": measures.get("loss_nats"),
        "train_loss_nats": outcome.train_loss,
        "delta_norm": outcome.delta_norm,
        "num_examples": outcome.num_examples,
        "synced_fraction": outcome.synced_fraction,
        "simulated_seconds": outcome.simulated_seconds,
        "cohort": list(outcome.cohort),
        "rejections": [vars(each) for each in outcome.rejections],
        "uplink_bytes": uplink,
        "downlink_bytes": downlink,
        "cumulative_bytes": cumulative_bytes,
        **outcome.logged,
    }


def timing_record(round: int, wall_seconds: float, peak_memory_bytes: int) -> Record:
    """One line of `timings.jsonl`.

    Args:
        round: number of the round, from 1.
        wall_seconds: time from the plan of this round to its checkpoint.
        peak_memory_bytes: highest resident memory of the process so far.
    """
    return {"round": round, "wall_seconds": wall_seconds, "peak_memory_bytes": peak_memory_bytes}


def summary(
    records: Sequence[Record],
    timings: Sequence[Record],
    ledger: Ledger,
    *,
    tuned_parameters: int,
    total_parameters: int,
) -> Record:
    """The content of `summary.json`.

    Args:
        records: lines of `rounds.jsonl`.
        timings: lines of `timings.jsonl`.
        ledger: all payloads of the run.
        tuned_parameters: number of scalars that travel.
        total_parameters: number of scalars of the whole model, tuned ones included.

    Returns:
        Sizes in bytes, times in seconds, accuracies as fractions or None when no round was evaluated. `void_rounds`
        did not count, for too few replies. `accuracy_by_exit` is that of the last evaluated round, lowest exit first,
        and `mean_exit_accuracy` its mean; None without exits.
        `full_model_bytes` is what the same payloads would have weighed with the whole model in float32.
    """
    accuracies = [each["accuracy"] for each in records if each["accuracy"] is not None]
    by_exit = accuracy_by_exit(records)
    return {
        "final_accuracy": accuracies[-1] if accuracies else None,
        "best_accuracy": max(accuracies, default=None),
        "accuracy_by_exit": by_exit,
        "mean_exit_accuracy": None if by_exit is None else fmean(by_exit),
        "rounds": len(records),
        "void_rounds": sum(each["num_examples"] == 0 for each in records),
        "relative_cost": relative_cost(records),
        "tuned_parameters": tuned_parameters,
        "total_parameters": total_parameters,
        "uplink_bytes": ledger.uplink_bytes,
        "downlink_bytes": ledger.downlink_bytes,
        "uplink_tensor_bytes": ledger.uplink_tensor_bytes,
        "downlink_tensor_bytes": ledger.downlink_tensor_bytes,
        "full_model_bytes": full_model_bytes(total_parameters, ledger.num_transfers),
        "wall_seconds": sum(each["wall_seconds"] for each in timings),
        "peak_memory_bytes": max((each["peak_memory_bytes"] for each in timings), default=0),
    }


def accuracy_by_exit(records: Sequence[Record]) -> list[float] | None:
    """Fractions at each exit in the last evaluated round, lowest exit first; None without exits."""
    return next((each["accuracy_by_exit"] for each in reversed(records) if "accuracy_by_exit" in each), None)


def relative_cost(records: Sequence[Record]) -> float | None:
    """The cost of FedLAMA's Eq. 9, as a share of what it is when every group travels in every round.

    That is the mean `synced_fraction` of the rounds that count; None without any, or where records do not have it.
    """
    synced = [each.get("synced_fraction") for each in records if each.get("num_examples")]
    known = [fraction for fraction in synced if fraction is not None]
    return sum(known) / len(known) if known and len(known) == len(synced) else None


def full_model_bytes(total_parameters: int, num_transfers: int) -> int:
    """What `num_transfers` payloads, up or down, weigh when each holds the whole model in float32."""
    return BYTES_PER_FLOAT32 * total_parameters * num_transfers
