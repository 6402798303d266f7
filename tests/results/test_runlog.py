from __future__ import annotations

from dataclasses import replace

import torch
from tests.builders import evaluated

from fedelta.federation.records import Rejection, RoundOutcome, Transfer
from fedelta.results.ledger import Ledger
from fedelta.results.runlog import full_model_bytes, round_record, summary, timing_record

TRANSFERS = (
    Transfer(3, 1, "down", 100, {"a": 80}),
    Transfer(3, 5, "down", 100, {"a": 80}),
    Transfer(3, 1, "up", 60, {"a": 40}),
)
OUTCOME = RoundOutcome(
    round=3,
    params={"w": torch.ones(2)},
    state={},
    cohort=(1, 5),
    rejections=(Rejection(5, "no reply", "no reply"),),
    transfers=TRANSFERS,
    num_examples=17,
    train_loss=0.5,
    evaluation=None,
    delta_norm=2.5,
    synced_fraction=0.25,
    logged={"interval_rounds": (1, 4)},
)


def test_a_round_record_holds_what_the_seed_determines():
    assert round_record(OUTCOME, cumulative_bytes=900) == {
        "round": 3,
        "accuracy": None,
        "test_loss_nats": None,
        "train_loss_nats": 0.5,
        "delta_norm": 2.5,
        "num_examples": 17,
        "synced_fraction": 0.25,
        "simulated_seconds": None,
        "cohort": [1, 5],
        "rejections": [{"client_id": 5, "reason": "no reply", "cause": "no reply"}],
        "uplink_bytes": 60,
        "downlink_bytes": 200,
        "cumulative_bytes": 900,
        "interval_rounds": (1, 4),
    }


def test_a_summary_of_three_rounds_by_hand():
    synced = zip((0.5, 0.8, 0.7), (1.0, 0.25, 0.25), strict=True)
    records = [{"accuracy": each, "num_examples": 9, "synced_fraction": share} for each, share in synced]
    records.append({"accuracy": None, "num_examples": 0, "synced_fraction": 0.0})
    timings = [timing_record(1, 1.5, 300), timing_record(2, 2.0, 200)]
    ledger = Ledger(backbone_bytes=10_000)
    ledger.append(TRANSFERS)
    assert summary(records, timings, ledger, tuned_parameters=20, total_parameters=1000) == {
        "final_accuracy": 0.7,
        "best_accuracy": 0.8,
        "accuracy_by_exit": None,
        "mean_exit_accuracy": None,
        "rounds": 4,
        "void_rounds": 1,
        "relative_cost": 0.5,  # (1 + 1/4 + 1/4) / 3
        "tuned_parameters": 20,
        "total_parameters": 1000,
        "uplink_bytes": 60,
        "downlink_bytes": 200,
        "uplink_tensor_bytes": 40,
        "downlink_tensor_bytes": 160,
        "full_model_bytes": 12_000,  # 3 payloads of 1000 float32
        "wall_seconds": 3.5,
        "peak_memory_bytes": 300,
    }


def test_accuracies_by_exit_are_those_of_the_last_evaluated_round():
    rounds = [
        replace(OUTCOME, evaluation=evaluated(0.5, 2.0, (0.125, 0.5))),
        replace(OUTCOME, evaluation=evaluated(0.75, 1.0, (0.25, 0.75))),
        OUTCOME,
    ]
    records = [round_record(outcome, 0) for outcome in rounds]
    assert [record.get("accuracy_by_exit") for record in records] == [[0.125, 0.5], [0.25, 0.75], None]
    assert [record["test_loss_nats"] for record in records] == [2.0, 1.0, None]
    found = summary(records, [], Ledger(), tuned_parameters=1, total_parameters=2)
    assert found["accuracy_by_exit"] == [0.25, 0.75]
    assert found["mean_exit_accuracy"] == 0.5
    assert found["final_accuracy"] == 0.75


def test_a_summary_without_rounds_has_no_accuracy():
    nothing = summary([], [], Ledger(), tuned_parameters=1, total_parameters=2)
    assert nothing["final_accuracy"] is nothing["best_accuracy"] is None
    assert nothing["rounds"] == nothing["wall_seconds"] == nothing["peak_memory_bytes"] == 0


def test_a_float32_takes_four_bytes():
    assert full_model_bytes(total_parameters=10, num_transfers=16) == 640
