from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from fedelta.errors import InputError
from fedelta.tasks.details import Answered
from fedelta.tasks.regression import Estimate, Regression
from fedelta.tasks.targets import TargetColumn

TASK = Regression()
SCALED = Regression(offset=10.0, scale=2.0)
WHAT = "training set: target column 'size'"
WHOLE = "integers, which may be class numbers, expected floats: write amounts with a decimal point, such as 3.0"
CLASSES = '; to predict classes, set `task.name` = "classification"'


def column(*values: object, what: str = "training set", names: tuple[str, ...] | None = None) -> TargetColumn:
    return TargetColumn("size", what, values, names)


def test_losses_are_squared_errors_by_row():
    assert TASK.losses(tensor([[1.0], [-2.0]]), tensor([3.0, -2.5])).tolist() == [4.0, 0.25]


def test_divergences_are_squared_distances_and_teach_one_side_only():
    outputs, teacher = tensor([[1.0], [2.0]], requires_grad=True), tensor([[4.0], [2.0]], requires_grad=True)
    divergences = TASK.divergences(outputs, teacher)
    assert divergences.tolist() == [9.0, 0.0]
    divergences.sum().backward()
    assert teacher.grad is None
    assert outputs.grad.tolist() == [[-6.0], [0.0]]


def test_measures_are_in_the_unit_of_the_targets_by_hand():
    # Errors 1, -3, 2 as learned: mean square 14/3, mean size 2; twice as much in the unit of the targets.
    outputs, targets = tensor([[1.0], [0.0], [4.0]]), tensor([0.0, 3.0, 2.0])
    measures = SCALED.values(SCALED.sums(outputs[:1], targets[:1]) + SCALED.sums(outputs[1:], targets[1:]))
    assert list(measures) == ["rmse", "mae", "mse"]
    assert measures == pytest.approx({"rmse": 2 * math.sqrt(14 / 3), "mae": 4.0, "mse": 14 / 3})
    assert not SCALED.primary.higher_is_better


def test_details_have_the_explained_share_and_measures_by_client():
    # Targets 0, 2, 4, 6 around 3: variance 5; errors 1, 1, 1, -1: mean square 1, of which 1 - 1/5 is explained.
    outputs, targets = tensor([[1.0], [3.0], [5.0], [5.0]]), tensor([0.0, 2.0, 4.0, 6.0])
    batches = [Answered(tensor([0, 1]), outputs[:2], targets[:2]), Answered(tensor([2, 3]), outputs[2:], targets[2:])]
    details = TASK.details(batches, (), tensor([7, 7, -1, 8]))
    assert details.measures == pytest.approx({"rmse": 1.0, "mae": 1.0, "mse": 1.0, "r2": 0.8})
    assert details.by_client[7] == pytest.approx({"rmse": 1.0, "mae": 1.0, "mse": 1.0, "r2": 0.0, "num_examples": 2})
    assert details.by_client[8] == {
        "rmse": 1.0,
        "mae": 1.0,
        "mse": 1.0,
        "num_examples": 1,
    }  # one target explains nothing
    assert (details.by_class, details.confusion) == ({}, None)
    assert details.measures.keys() == TASK.measured.keys()


def test_targets_are_learned_in_steps_of_their_scale_and_ranges_are_those_of_the_training_set():
    train = column(*map(float, range(20)))
    targets = SCALED.targets(train, column(-5.0, 10.0, 100.0, what="test set"))
    assert targets.problems == ()
    assert targets.train.fetch(tensor([0, 10, 12])).tolist() == [-5.0, 0.0, 1.0]
    assert targets.train.strata.bincount().tolist() == [2] * 10
    assert targets.test.strata.tolist() == [0, 5, 9]
    assert targets.test.select(tensor([2])).values.tolist() == [45.0]
    assert len(targets.test.select(tensor([2]))) == 1
    assert (targets.class_names, len(targets.strata_names)) == ((), 10)
    assert (targets.strata_names[0], targets.strata_names[1], targets.strata_names[-1]) == (
        "below 1.9", "1.9 to 3.8", "from 17.1",
    )  # fmt: skip


def test_values_that_many_rows_share_leave_fewer_ranges():
    targets = TASK.targets(column(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0), None)
    assert targets.strata_names == ("below 0", "0 to 0.2", "0.2 to 1.1", "from 1.1")
    assert len(targets.strata_names) > targets.train.strata.max()


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (column(1, 2, 3), f"{WHAT} holds {WHOLE}{CLASSES}"),
        (column("a", "b"), f"{WHAT} holds 'str', expected numbers{CLASSES}"),
        (column(True, False), f"{WHAT} holds 'bool', expected numbers{CLASSES}"),
        (column(0, 1, names=("a", "b")), f"{WHAT} holds class labels, expected numbers{CLASSES}"),
        (column(None, None), f"{WHAT} holds no values, expected numbers{CLASSES}"),
        (column(1.0, None, math.nan, math.inf), f"{WHAT} holds no number in 1 rows: rows 1"),
        (column(2.5, 2.5), "target column 'size' holds 2.5 in every row, expected several values"),
    ],
)
def test_problems_with_targets_are_reported(train, problem):
    assert TASK.targets(train, None).problems[0] == problem


def test_problems_of_both_sets_are_reported_together():
    targets = TASK.targets(column(1.0, math.nan, 2.0), column(None, -math.inf, 1.0, what="test set"))
    assert targets.problems == (
        "training set: target column 'size' holds NaN or infinity in 1 rows: rows 1",
        "test set: target column 'size' holds no number in 1 rows: rows 0",
        "test set: target column 'size' holds NaN or infinity in 1 rows: rows 1",
    )


def test_an_answer_is_a_number_in_the_unit_of_the_targets():
    assert SCALED.answers(tensor([[0.5], [-1.0]]), (), exit=3) == [Estimate(11.0, 3), Estimate(8.0, 3)]
    assert Estimate(11.25).cells == ("11.25",)
    assert SCALED.records(tensor([[0.5]]), tensor([1.0]), ()) == [{"target": 12.0, "predicted": 11.0}]


def test_a_regression_has_no_confidence():
    with pytest.raises(InputError, match="a regression gives no confidence, so exits cannot be chosen by confidence"):
        TASK.confidence(torch.zeros(1, 1))


def test_a_model_has_one_output_in_every_modality():
    assert TASK.num_outputs(()) == 1
    assert [TASK.loader(modality).auto_class for modality in ("image", "text")] == [
        "AutoModelForImageClassification", "AutoModelForSequenceClassification",
    ]  # fmt: skip
    assert TASK.loader("image").pipeline_tag is None
    assert TASK.loader("smell") is None


@pytest.mark.parametrize(
    ("columns", "candidates"),
    [({"target": "float", "x": "image"}, ["target"]), ({"label": "float"}, ["label"]), ({"x": "float"}, []),
     ({"label": "integer", "target": "float"}, ["target", "label"])],
)  # fmt: skip
def test_targets_are_in_a_column_of_that_name(columns, candidates):
    assert TASK.candidates(columns) == candidates
