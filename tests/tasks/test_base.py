from __future__ import annotations

import math

import pytest

from fedelta.tasks.base import Evaluation, Sums, mean_of


def test_sums_of_parts_add_up_to_those_of_the_whole():
    # (3 + 1 + 4) / (2 + 1 + 1) = 2
    parts = [Sums({"error": (3.0, 2), "right": (1, 2)}), Sums({"error": (1.0, 1)}), Sums({"error": (4.0, 1)})]
    whole = Sums() + parts[0] + parts[1] + parts[2]
    assert (whole.mean("error"), whole.mean("right")) == (2.0, 0.5)
    assert parts[0] == Sums({"error": (3.0, 2), "right": (1, 2)})


def test_a_mean_of_evaluations_is_taken_measure_by_measure_and_exit_by_exit():
    first = Evaluation({"accuracy": 0.5, "loss_nats": 1.0}, {"accuracy": (0.25, 0.5)})
    second = Evaluation({"accuracy": 1.0, "loss_nats": 3.0}, {"accuracy": (0.75, 1.0)})
    assert mean_of([first, second]) == Evaluation({"accuracy": 0.75, "loss_nats": 2.0}, {"accuracy": (0.5, 0.75)})
    assert mean_of([first]) == first


@pytest.mark.parametrize(("value", "name"), [(1.0, None), (math.nan, "loss_nats"), (-math.inf, "loss_nats")])
def test_an_evaluation_names_its_first_measure_that_is_no_number(value, name):
    assert Evaluation({"accuracy": 0.5, "loss_nats": value}).not_finite == name
