"""The frames of a comparison: types, means, deviations and the Pareto front, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.comparison.invented import METHODS, cell, invented, of_rows

from fedelta.comparison.columns import measures
from fedelta.comparison.frames import (
    FAILED,
    WAITING,
    Row,
    cells_frame,
    curves_frame,
    mean_curve,
    one_line,
    pareto_front,
)
from fedelta.tasks.base import Measure
from fedelta.tasks.classification import ACCURACY


def groups(*rows: Row, axes: tuple[str, ...] = ("seed",), **options: Any):
    return of_rows(rows, axes=axes, **options).groups


def of_seeds(*accuracies: float | None):
    """The only group of cells with these accuracies."""
    return groups(*(cell({"seed": str(seed)}, value) for seed, value in enumerate(accuracies))).iloc[0]


def test_the_cells_have_axes_figures_and_states_and_keep_their_types():
    rows = [
        cell({"tuning.name": "01", "seed": "True"}, 0.5, total_bytes=2**53 + 1, **{"client.lr": 1}),
        cell({"tuning.name": "nan", "seed": ""}, state=WAITING, **{"client.lr": None}),
        cell({"tuning.name": "lora", "seed": "2"}, state=FAILED, **{"client.lr": ["a", "b"]}),
    ]
    frame = cells_frame(rows, ["tuning.name", "seed", "client.lr"], measures(ACCURACY)[:1])
    assert frame.columns.tolist() == [
        "tuning.name", "seed", "client.lr", "accuracy", "tuned_parameters", "bytes_per_client_round", "total_bytes",
        "relative_cost", "epsilon", "wall_seconds", "state", "reason", "run",
    ]  # fmt: skip
    assert frame["tuning.name"].tolist() == ["01", "nan", "lora"]
    assert frame["seed"].tolist() == ["True", "", "2"]
    assert frame["client.lr"].tolist() == [1, None, ["a", "b"]]
    assert [type(value) for value in frame["client.lr"]] == [int, type(None), list]
    assert frame["total_bytes"][0] == 2**53 + 1  # no float holds it
    assert frame[["accuracy", "tuned_parameters", "total_bytes"]].isna().all(axis=1).tolist() == [False, True, True]
    assert frame["state"].tolist() == ["finished", "waiting", "failed"]


def test_labels_that_look_like_missing_values_are_groups_like_any_other():
    labels = ["nan", "None", "", "null", "01", "1", "True"]
    rows = [cell({"method": label, "seed": seed}, 0.5) for label in labels for seed in ("1", "2")]
    frame = groups(*rows, axes=("method", "seed"))
    assert frame["method"].tolist() == labels
    assert frame["num_seeds"].tolist() == [2] * len(labels)


def test_the_groups_come_in_the_order_of_the_grid():
    frame = invented({"tuning.name": ["z", "a"], "tuning.r": ["10", "9"], "seed": ["2", "1"]}).groups
    assert frame[["tuning.name", "tuning.r"]].to_numpy().tolist() == [["z", "10"], ["z", "9"], ["a", "10"], ["a", "9"]]


def test_the_cells_come_group_by_group_whatever_the_place_of_the_seed():
    frame = invented({"seed": ["1", "2"], "tuning.name": ["lora", "head"]}).frame
    assert frame[["tuning.name", "seed"]].to_numpy().tolist() == [
        ["lora", "1"],
        ["lora", "2"],
        ["head", "1"],
        ["head", "2"],
    ]
    assert frame.index.tolist() == [0, 1, 2, 3]


def test_mean_and_sample_deviation_of_three_seeds():
    # Mean (0.90 + 0.92 + 0.97) / 3 = 0.93; squares of the differences 0.0009 + 0.0001 + 0.0016 = 0.0026, over 2 is
    # 0.0013, whose root is 0.0360555.
    group = of_seeds(0.90, 0.92, 0.97)
    assert group["accuracy_mean"] == pytest.approx(0.93)
    assert group["accuracy_deviation"] == pytest.approx(0.0360555)
    assert (group["num_seeds"], group["num_cells"], group["tuned_parameters"]) == (3, 3, 10)


def test_equal_seeds_have_a_deviation_of_exactly_zero():
    assert of_seeds(0.1, 0.1, 0.1)["accuracy_deviation"] == 0.0


def test_one_seed_has_no_deviation_and_none_no_mean():
    group = of_seeds(0.5)
    assert (group["accuracy_mean"], group["num_seeds"]) == (0.5, 1)
    assert group[["accuracy_deviation"]].isna().all()
    empty = groups(cell({"seed": "1"}, state=FAILED)).iloc[0]
    assert empty[["accuracy_mean", "accuracy_deviation", "total_bytes", "tuned_parameters"]].isna().all()
    assert (empty["num_seeds"], empty["num_cells"], empty["state"]) == (0, 1, "failed")


def test_a_run_that_was_never_evaluated_does_not_count():
    group = of_seeds(0.5, None)
    assert (group["accuracy_mean"], group["num_seeds"], group["num_cells"]) == (0.5, 1, 2)


def test_a_group_shows_the_number_of_its_finished_cells_and_each_reason_once():
    rows = [
        cell({"seed": "1"}, 0.5),
        cell({"seed": "2"}, state=FAILED, reason="A: b\nhint: c"),
        cell({"seed": "3"}, state=FAILED, reason="A: b\nhint: c"),
        cell({"seed": "4"}, state=FAILED, reason="D: e"),
    ]
    assert groups(*rows).iloc[0][["state", "reason"]].tolist() == ["1 of 4 finished", "A: b; D: e"]


def test_a_curve_is_the_mean_over_the_rounds_that_all_seeds_evaluated():
    one, other = ((1, 0.1), (2, 0.3), (3, 0.5)), ((1, 0.3), (3, 0.7))
    curves = curves_frame(
        [
            ({"method": "a", "seed": "1"}, one),
            ({"method": "a", "seed": "2"}, other),
            ({"method": "b", "seed": "1"}, ((2, 0.9),)),
        ],
        ["method", "seed"],
        "accuracy",
    )
    deviation = 0.2 / 2**0.5  # of two values 0.2 apart
    assert mean_curve(curves, {"method": "a"}, 2) == [
        (1, pytest.approx(0.2), pytest.approx(deviation)),
        (3, pytest.approx(0.6), pytest.approx(deviation)),
    ]
    assert mean_curve(curves, {"method": "b"}, 1) == [(2, 0.9, None)]
    # A third cell has finished without any evaluation.
    assert mean_curve(curves, {"method": "a"}, 3) == []
    assert mean_curve(curves[:0], {"method": "a"}, 0) == []


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(5.0, 0.1)], [True]),
        # The third sends more than the second for the same accuracy, the fourth more than the first for less.
        ([(1, 0.5), (2, 0.9), (3, 0.9), (4, 0.4)], [True, True, False, False]),
        # Equal in both: neither beats the other.
        ([(1, 0.5), (1, 0.5)], [True, True]),
        # As many bytes, less accuracy.
        ([(1, 0.5), (1, 0.6)], [False, True]),
    ],
)
def test_the_front_holds_what_nothing_beats(points, expected):
    assert pareto_front(points) == expected


def test_groups_are_compared_with_those_of_their_task_only():
    figures = {
        ("head", "easy"): (1, 0.9),
        ("head", "hard"): (1, 0.2),
        ("lora", "easy"): (9, 0.8),
        ("lora", "hard"): (9, 0.3),
    }
    rows = [
        cell({"method": method, "seed": seed, "task": task}, accuracy, num_bytes)
        for (method, task), (num_bytes, accuracy) in figures.items()
        for seed in ("1", "2")
    ]
    frame = groups(*rows, axes=("method", "seed", "task"), task_axes=("task",))
    assert frame[["method", "task", "on_pareto_front", "num_cells"]].to_numpy().tolist() == [
        ["head", "easy", True, 2],
        ["head", "hard", True, 2],
        ["lora", "easy", False, 2],
        ["lora", "hard", True, 2],
    ]


def test_a_group_without_an_accuracy_is_not_on_the_front():
    rows = [cell({"method": "a"}, 0.5, 10), cell({"method": "b"}, state=FAILED)]
    assert groups(*rows, axes=("method",))["on_pareto_front"].tolist() == [True, False]
    assert groups(rows[1], axes=("method",), task_axes=("method",))["on_pareto_front"].tolist() == [False]


def test_on_the_front_of_a_measure_that_should_be_low_are_the_low_ones():
    # The second sends more than the first for a larger error, the third more for a smaller one.
    errors = {"a": (10, 0.5), "b": (20, 0.7), "c": (30, 0.4)}
    rows = [cell({"method": name}, 0, num_bytes, mae=error) for name, (num_bytes, error) in errors.items()]
    lower = Measure("mae", "mean error", higher_is_better=False)
    assert groups(*rows, axes=("method",), primary=lower)["on_pareto_front"].tolist() == [True, False, True]


def test_figures_of_the_frames_have_the_units_of_the_records():
    comparison = invented(METHODS, relative_cost=0.5, exits=True)
    assert comparison.frame["accuracy"].tolist() == [0.5, 0.51, 0.52, 0.53]
    lora = comparison.groups.iloc[1]
    assert lora[["tuning.name", "client.lr", "tuned_parameters"]].tolist() == ["lora", 0.1, 2000]
    assert lora[["bytes_per_client_round", "total_bytes"]].tolist() == [2**19, 2**21]
    assert lora[["relative_cost", "wall_seconds"]].tolist() == [0.5, 3.0]
    assert lora["mean_exit_accuracy"] == pytest.approx(0.315)


def test_a_long_reason_is_cut_and_a_traceback_left_out():
    assert one_line("ValueError: a\nb\n\nTraceback ...") == "ValueError: a b"
    assert len(one_line("x" * 999)) == 301


def of_method(name: str, accuracies: Sequence[float], num_bytes: int) -> list[dict[str, object]]:
    return [
        cell({"method": name, "seed": str(seed)}, value, total_bytes=num_bytes)
        for seed, value in enumerate(accuracies, start=1)
    ]


def test_a_front_is_clear_where_the_interval_over_the_seeds_excludes_zero():
    cheap = of_method("cheap", (0.50, 0.60, 0.70), 100)
    # Better by 0.05, 0.06 and 0.04: 0.05 ± 4.303 x 0.01 / sqrt(3) = 0.025, though the seeds differ by more than that.
    better = of_method("better", (0.55, 0.66, 0.74), 200)
    # Better than `better` by 0.10, -0.05 and 0.01: 0.02 ± 0.19.
    lucky = of_method("lucky", (0.65, 0.61, 0.75), 300)
    frame = groups(*cheap, *better, *lucky, axes=("method", "seed"))
    assert frame["on_pareto_front"].tolist() == [True, True, True]
    assert frame["front_is_clear"].tolist() == [True, True, False]


@pytest.mark.parametrize("num_bytes", [100, 200])
def test_one_seed_makes_no_front_clear_except_that_of_the_cheapest(num_bytes):
    frame = groups(*of_method("one", (0.5,), 100), *of_method("two", (0.9,), num_bytes), axes=("method", "seed"))
    assert frame["front_is_clear"].tolist() == [num_bytes == 200, False]
