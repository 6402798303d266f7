from __future__ import annotations

import json

import torch
from torch import tensor

from fedelta.tasks.details import Confusion, Details, by_client, mean_details


def test_answers_are_sorted_by_the_client_of_their_row():
    # Answers to rows 3, 0, 2, 1, of the clients 7, 4, -, 7.
    clients = tensor([4, 7, -1, 7])
    places_of = {client: places.tolist() for client, places in by_client(tensor([3, 0, 2, 1]), clients)}
    assert places_of == {4: [1], 7: [0, 3]}


def test_rows_without_a_known_client_are_left_out():
    assert list(by_client(torch.arange(3), None)) == []
    assert list(by_client(torch.arange(2), tensor([-1, -1]))) == []


def test_means_over_models_keep_what_is_counted_and_drop_what_one_of_them_lacks():
    def part(accuracy: float, recall: float | None, counts, **late: float) -> Details:
        return Details(
            {"accuracy": accuracy, **late},
            {"cat": {"recall": recall, "num_examples": 4}},
            {2: {"accuracy": accuracy, "num_examples": 3}},
            Confusion(("cat", "dog"), counts, 4),
        )

    parts = [part(0.5, 1.0, ((1, 1), (1, 1)), auroc=0.7), part(1.0, None, ((2, 0), (0, 2)))]
    assert mean_details(parts) == Details(
        {"accuracy": 0.75},
        {"cat": {"recall": None, "num_examples": 4}},
        {2: {"accuracy": 0.75, "num_examples": 3}},
        Confusion(("cat", "dog"), ((3, 1), (1, 3)), 8, num_models=2),
    )
    assert mean_details(parts[:1]) == parts[0]


def test_a_mean_without_classes_has_no_confusion():
    parts = [Details({"rmse": 1.0}), Details({"rmse": 3.0})]
    assert mean_details(parts) == Details({"rmse": 2.0})


def test_records_are_json():
    details = Details({"accuracy": 0.5}, {"cat": {"recall": None}}, {2: {"accuracy": 0.25}})
    assert json.loads(json.dumps(details.as_record())) == {
        "measures": {"accuracy": 0.5}, "by_class": {"cat": {"recall": None}}, "by_client": {"2": {"accuracy": 0.25}},
    }  # fmt: skip
    confusion = Confusion(("cat", "dog"), ((2, 1), (0, 3)), 6)
    assert confusion.as_record() == {
        "class_names": ["cat", "dog"], "counts": [[2, 1], [0, 3]], "num_examples": 6, "num_models": 1,
    }  # fmt: skip
