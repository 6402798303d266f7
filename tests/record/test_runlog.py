from __future__ import annotations

from dataclasses import replace

import torch
from tests.builders import evaluated

from fedelta.data.clients import Clients
from fedelta.federation.records import Rejection, RoundOutcome, Transfer
from fedelta.record.ledger import Ledger
from fedelta.record.runlog import full_model_bytes, round_record, summary, timing_record
from fedelta.tasks.base import Measure
from fedelta.tasks.classification import ACCURACY, LOSS

SIZES = {"tuned_parameters": 1, "total_parameters": 2}
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
    assert round_record(OUTCOME, 900, LOSS) == {
        "round": 3,
        "measures": None,
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


def test_a_round_record_has_the_names_of_its_clients():
    clients = Clients.of(range(6), {number: f"site {number}" for number in range(6)})
    record = round_record(OUTCOME, 900, LOSS, clients)
    assert record["cohort_names"] == ["site 1", "site 5"]
    lost = {"client_id": 5, "reason": "no reply", "cause": "no reply", "client_name": "site 5"}
    assert record["rejections"] == [lost]


def test_a_summary_of_three_rounds_by_hand():
    synced = zip((0.5, 0.8, 0.7), (1.0, 0.25, 0.25), strict=True)
    records = [
        {"measures": {"accuracy": item, "loss_nats": 2 - item}, "num_examples": 9, "synced_fraction": share}
        for item, share in synced
    ]
    records.append({"measures": None, "num_examples": 0, "synced_fraction": 0.0})
    timings = [timing_record(1, 1.5, 300), timing_record(2, 2.0, 200)]
    ledger = Ledger(backbone_bytes=10_000)
    ledger.append(TRANSFERS)
    assert summary(records, timings, ledger, ACCURACY, {"tuned_parameters": 20, "total_parameters": 1000}) == {
        "primary_measure": "accuracy",
        "final_accuracy": 0.7,
        "final_loss_nats": 1.3,
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


def test_the_best_of_a_measure_that_should_be_low_is_the_lowest():
    records = [{"measures": {"mae": item}, "num_examples": 9} for item in (3.0, 1.5, 2.0)]
    result = summary(records, [], Ledger(), Measure("mae", "mean error", higher_is_better=False), SIZES)
    assert (result["primary_measure"], result["final_mae"], result["best_mae"]) == ("mae", 2.0, 1.5)
    assert result["mae_by_exit"] is result["mean_exit_mae"] is None
    assert not [key for key in result if "accuracy" in key]


def test_a_summary_has_the_measures_of_the_finished_model():
    details = {"measures": {"macro_f1": 0.5}, "by_class": {"cat": {"recall": 1.0}}, "by_client": {}}
    assert summary([], [], Ledger(), ACCURACY, SIZES, details=details).items() >= details.items()


def test_a_training_loss_is_called_after_what_the_task_minimises():
    record = round_record(OUTCOME, 0, Measure("mse", "squared error", higher_is_better=False))
    assert record["train_mse"] == 0.5
    assert "train_loss_nats" not in record


def test_accuracies_by_exit_are_those_of_the_last_evaluated_round():
    rounds = [
        replace(OUTCOME, evaluation=evaluated(0.5, 2.0, (0.125, 0.5))),
        replace(OUTCOME, evaluation=evaluated(0.75, 1.0, (0.25, 0.75))),
        OUTCOME,
    ]
    records = [round_record(outcome, 0, LOSS) for outcome in rounds]
    by_exit = [{"accuracy": [0.125, 0.5]}, {"accuracy": [0.25, 0.75]}, None]
    assert [record.get("measures_by_exit") for record in records] == by_exit
    measures = [{"accuracy": 0.5, "loss_nats": 2.0}, {"accuracy": 0.75, "loss_nats": 1.0}, None]
    assert [record["measures"] for record in records] == measures
    result = summary(records, [], Ledger(), ACCURACY, SIZES)
    assert result["accuracy_by_exit"] == [0.25, 0.75]
    assert result["mean_exit_accuracy"] == 0.5
    assert result["final_accuracy"] == 0.75


def test_a_summary_without_rounds_has_no_accuracy():
    nothing = summary([], [], Ledger(), ACCURACY, SIZES)
    assert nothing["final_accuracy"] is nothing["best_accuracy"] is None
    assert nothing["rounds"] == nothing["wall_seconds"] == nothing["peak_memory_bytes"] == 0


def test_a_float32_takes_four_bytes():
    assert full_model_bytes(total_parameters=10, num_transfers=16) == 640
