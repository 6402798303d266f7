from __future__ import annotations

import math

import pytest
import torch
from tests.small import write_small
from torch import tensor

from fedelta.config import load_config
from fedelta.errors import ConfigError, InputError
from fedelta.tasks.base import Sums
from fedelta.tasks.details import Answered
from fedelta.tasks.numbers import read_numbers
from fedelta.tasks.regression import Estimate, Estimates, Regression
from fedelta.tasks.targets import TargetColumn

TASK = Regression(offset=0.0, scale=1.0)
SCALED = Regression(offset=10.0, scale=2.0)


def column(*values: object) -> TargetColumn:
    return TargetColumn("size", "training set", values)


def test_losses_are_squared_errors_by_row():
    assert TASK.losses(tensor([[1.0], [-2.0]]), tensor([[3.0], [-2.5]])).tolist() == [4.0, 0.25]


def test_divergences_are_squared_distances_and_teach_one_side_only():
    outputs, teacher = tensor([[1.0], [2.0]], requires_grad=True), tensor([[4.0], [2.0]], requires_grad=True)
    divergences = TASK.divergences(outputs, teacher)
    assert divergences.tolist() == [9.0, 0.0]
    divergences.sum().backward()
    assert teacher.grad is None
    assert outputs.grad.tolist() == [[-6.0], [0.0]]


def test_measures_are_in_the_unit_of_the_targets_by_hand():
    # Errors 1, -3, 2 as learned: mean square 14/3, mean size 2; twice as much in the unit of the targets.
    # The targets 10, 16, 14 are 0, 3, 2 as learned; these are -5/3, 4/3, 1/3 from their mean: squares sum to 14/3.
    outputs, targets = tensor([[1.0], [0.0], [4.0]]), tensor([[10.0], [16.0], [14.0]])
    measures = SCALED.values(SCALED.sums(outputs[:1], targets[:1]) + SCALED.sums(outputs[1:], targets[1:]))
    assert list(measures) == ["rmse", "mae", "mse", "r2"]
    assert measures == pytest.approx(
        {"rmse": 2 * math.sqrt(14 / 3), "mae": 4.0, "mse": 14 / 3, "r2": 1 - 14 / (14 / 3)}
    )
    assert not SCALED.primary.higher_is_better


def test_details_have_the_explained_share_and_measures_by_client():
    # Targets 0, 2, 4, 6 around 3: variance 5; errors 1, 1, 1, -1: mean square 1, of which 1 - 1/5 is explained.
    outputs, targets = tensor([[1.0], [3.0], [5.0], [5.0]]), tensor([[0.0], [2.0], [4.0], [6.0]])
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


def test_an_answer_is_a_number_in_the_unit_of_the_targets():
    assert SCALED.answers(tensor([[0.5], [-1.0]]), (), exit=3) == [Estimate(11.0, 3), Estimate(8.0, 3)]
    assert Estimate(11.25).cells == ("11.25",)
    assert SCALED.records(tensor([[0.5]]), tensor([[12.0]]), ()) == [{"target": 12.0, "predicted": 11.0}]


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


def test_statistics_of_protected_targets_are_not_shared(tmp_path):
    private = ["privacy.unit=client", "privacy.noise_multiplier=1.0", "privacy.clipping_norm=1.0"]
    with pytest.raises(ConfigError, match=r"`task.offset` and `task.scale` would follow from the clients' targets"):
        load_config(write_small(tmp_path), ["task.name=regression", *private])
    load_config(write_small(tmp_path), ["task.name=regression", "task.offset=0.0", "task.scale=1.0", *private])


def test_offset_and_scale_follow_from_sums_over_clients():
    # 1, 2, 3 and 6: mean 3, squares of the distances 4 + 1 + 0 + 9, so the variance is 14/4.
    one, other = (read_numbers(column(*values), None).train for values in ((1.0, 2.0), (3.0, 6.0)))
    task = Regression()
    assert task.automatic == ("offset", "scale")
    settled = task.settled(task.statistics(one, ()) + task.statistics(other, ()), ())
    assert (settled.offset, settled.scale) == (3.0, pytest.approx(math.sqrt(14 / 4)))
    assert settled.automatic == ()
    assert Regression(offset=1.0).settled(task.statistics(one, ()) + task.statistics(other, ()), ()).offset == 1.0
    assert SCALED.statistics(one, ()) == Sums()


def test_each_of_several_numbers_has_its_own_scale_and_measures():
    rows = TargetColumn("a, b", "training set", [[0.0, 10.0], [2.0, 30.0]], parts=("a", "b"))
    targets, task = read_numbers(rows, None).train, Regression()
    settled = task.settled(task.statistics(targets, ("a", "b")), ("a", "b"))
    assert (settled.offset, settled.scale) == ((1.0, 20.0), (1.0, 10.0))
    assert settled.num_outputs(("a", "b")) == 2
    # As learned, the targets are -1, -1 and 1, 1, and the errors 1, 0 and 0, 2.
    outputs, values = tensor([[0.0, -1.0], [1.0, 3.0]]), targets.values
    assert settled.losses(outputs, values).tolist() == [0.5, 2.0]
    details = settled.details([Answered(tensor([0, 1]), outputs, values)], ("a", "b"))
    assert details.by_class["a"] == pytest.approx({"rmse": math.sqrt(1 / 2), "mae": 0.5, "r2": 0.5, "num_examples": 2})
    assert details.by_class["b"] == pytest.approx(
        {"rmse": 10 * math.sqrt(2), "mae": 10.0, "r2": -1.0, "num_examples": 2}
    )
    assert details.measures["rmse"] == pytest.approx((math.sqrt(1 / 2) + 10 * math.sqrt(2)) / 2)
    assert details.measures["r2"] == pytest.approx(-0.25)
    (answer, _) = settled.answers(outputs, ("a", "b"), None)
    assert (answer, answer.cells) == (Estimates({"a": 1.0, "b": 10.0}), ("a 1", "b 10"))
    assert settled.records(outputs[:1], values[:1], ("a", "b")) == [
        {"target a": 0.0, "target b": 10.0, "predicted a": 1.0, "predicted b": 10.0}
    ]


def test_r2_is_not_defined_where_the_targets_are_all_the_same():
    values = SCALED.values(SCALED.sums(tensor([[1.0], [2.0]]), tensor([[5.3], [5.3]], dtype=torch.float64)))
    assert "r2" not in values
    two = Regression(offset=(0.0, 0.0), scale=(1.0, 1.0))
    outputs, targets = tensor([[1.0, 1.0], [2.0, 2.0]]), tensor([[0.1, 1.0], [0.1, 2.0]])
    details = two.details([Answered(tensor([0, 1]), outputs, targets)], ("a", "b"))
    assert (details.by_class["a"]["r2"], details.by_class["b"]["r2"]) == (None, 1.0)
    assert details.measures["r2"] == 1.0


def test_targets_that_hardly_differ_have_no_scale():
    task, targets = Regression(), read_numbers(column(1e9, 1e9 + 1e-3), None).train
    with pytest.raises(ConfigError, match=r"the scale of 'target' cannot be calculated") as caught:
        task.settled(task.statistics(targets, ()), ())
    assert "set `task.offset` and `task.scale`" in str(caught.value.hint)


def test_as_many_scales_as_numbers_are_expected():
    with pytest.raises(ConfigError, match=r"`task.scale` has 2 numbers, but a row has 1"):
        Regression(offset=0.0, scale=(1.0, 2.0)).settled(Sums(), ())
