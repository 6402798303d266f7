"""Means, deviations and the Pareto front, by hand."""

from __future__ import annotations

import pytest

from fedelta.comparison.outcomes import CellState, Group, Outcome, group_cells, pareto_front
from fedelta.tasks.base import Measure
from fedelta.tasks.classification import ACCURACY


def outcome(accuracy: float | None, total_bytes: int = 100, curve: tuple[tuple[int, float], ...] = ()) -> Outcome:
    return Outcome(accuracy, 1.0, 10, 5.0, total_bytes, 2.0, 0, curve, "")


def group(*accuracies: float | None) -> Group:
    cells = [CellState({"seed": str(seed)}, outcome=outcome(each)) for seed, each in enumerate(accuracies)]
    return Group({}, tuple(cells))


def test_mean_and_sample_deviation_of_three_seeds():
    # Mean (0.90 + 0.92 + 0.97) / 3 = 0.93; squares of the differences 0.0009 + 0.0001 + 0.0016 = 0.0026, over 2 is
    # 0.0013, whose root is 0.0360555.
    found = group(0.90, 0.92, 0.97)
    assert (found.mean, found.deviation, found.num_seeds) == (pytest.approx(0.93), pytest.approx(0.0360555), 3)


def test_one_seed_has_no_deviation_and_none_no_mean():
    assert (group(0.5).mean, group(0.5).deviation, group(0.5).num_seeds) == (0.5, None, 1)
    empty = Group({}, (CellState({"seed": "1"}, failure="RoundError: no"),))
    assert (empty.mean, empty.deviation, empty.num_seeds, empty.total_bytes) == (None, None, 0, None)


def test_a_run_that_was_never_evaluated_does_not_count():
    assert (group(0.5, None).mean, group(0.5, None).num_seeds) == (0.5, 1)


def test_a_curve_is_the_mean_over_the_rounds_that_all_seeds_evaluated():
    one, other = outcome(0.5, curve=((1, 0.1), (2, 0.3), (3, 0.5))), outcome(0.7, curve=((1, 0.3), (3, 0.7)))
    found = Group({}, (CellState({}, outcome=one), CellState({}, outcome=other)))
    assert found.curve == [(1, pytest.approx(0.2)), (3, pytest.approx(0.6))]


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
    cells = [
        CellState({"method": method, "seed": seed, "task": task}, outcome=outcome(accuracy, num_bytes))
        for (method, task), (num_bytes, accuracy) in figures.items()
        for seed in ("1", "2")
    ]
    groups = group_cells(cells, "seed", ["task"], ACCURACY)
    assert [(each.labels, each.on_front, len(each.cells)) for each in groups] == [
        ({"method": "head", "task": "easy"}, True, 2),
        ({"method": "head", "task": "hard"}, True, 2),
        ({"method": "lora", "task": "easy"}, False, 2),
        ({"method": "lora", "task": "hard"}, True, 2),
    ]


def test_a_group_without_an_accuracy_is_not_on_the_front():
    cells = [CellState({"method": "a"}, outcome=outcome(0.5, 10)), CellState({"method": "b"}, failure="no")]
    assert [each.on_front for each in group_cells(cells, "seed", [], ACCURACY)] == [True, False]


def test_on_the_front_of_a_measure_that_should_be_low_are_the_low_ones():
    # The second sends more than the first for a larger error, the third more for a smaller one.
    errors = {"a": (10, 0.5), "b": (20, 0.7), "c": (30, 0.4)}
    cells = [
        CellState({"method": name}, outcome=outcome(error, num_bytes)) for name, (num_bytes, error) in errors.items()
    ]
    groups = group_cells(cells, "seed", [], Measure("mae", "mean error", higher_is_better=False))
    assert [each.on_front for each in groups] == [True, False, True]
