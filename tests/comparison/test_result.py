"""What is read off a comparison: the pivot, and the words for a group."""

from __future__ import annotations

from tests.comparison.invented import METHODS, cell, invented, of_rows

from fedelta.comparison.frames import FAILED, WAITING
from fedelta.comparison.result import mean_and_deviation, pivot, records
from fedelta.comparison.tables import table_md


def test_the_pivot_has_the_first_axis_downwards_and_the_best_of_each_column_bold():
    comparison = invented({"tuning.name": ["head", "lora"], "tuning.r": ["2", "4"], "seed": ["1", "2"]})
    result = pivot(comparison)
    assert result.header == ("tuning.name", "r 2", "r 4")
    assert result.rows == (("head", "50.5 ± 0.7", "50.5 ± 0.7"), ("lora", "52.5 ± 0.7", "52.5 ± 0.7"))
    assert result.best == {(1, 1), (1, 2)}
    assert "| lora | **52.5 ± 0.7** | **52.5 ± 0.7** |" in table_md(comparison)
    assert pivot(invented(METHODS)) is None


def test_means_that_look_the_same_are_equally_good_and_a_failed_one_is_not():
    axes = {"tuning.name": ["head", "bias", "lora"], "tuning.r": ["2", "4"], "seed": ["1", "2"]}
    # 50.50 and 50.53 are both printed as 50.5, 50.56 would be 50.6.
    result = pivot(invented(axes, points=0.03, failed=("lora",)))
    assert [row[1] for row in result.rows] == ["50.5 ± 0.7", "50.5 ± 0.7", "failed"]
    assert result.best == {(0, 1), (0, 2), (1, 1), (1, 2)}
    # The best by number, where text would sort otherwise: 50.5, 80.5 and 110.5.
    assert pivot(invented(axes, points=30)).best == {(2, 1), (2, 2)}
    assert pivot(invented(axes, failed=("head", "bias", "lora"))).best == frozenset()


def test_a_best_of_mere_chance_is_not_marked():
    def column(*rows: tuple[float, ...]) -> frozenset[tuple[int, int]]:
        cells = [
            cell({"method": str(place), "x": "a", "seed": str(seed)}, value)
            for place, values in enumerate(rows)
            for seed, value in enumerate(values)
        ]
        result = pivot(of_rows(cells, axes=("method", "x", "seed")))
        assert result is not None
        return result.best

    # The first is better by 0.1, -0.05 and 0.04, which is 0.03 ± 0.19; both are better than the third in every seed.
    one, other, third = (0.8, 0.7, 0.79), (0.7, 0.75, 0.75), (0.2, 0.21, 0.22)
    assert column(one, other) == frozenset()
    assert column(one, other, third) == {(0, 1), (1, 1)}
    assert column((0.9,), (0.1,)) == frozenset()  # a single seed tells nothing


def test_an_accuracy_says_how_many_seeds_are_missing():
    labels = [{"tuning.name": name, "seed": seed} for name in ("head", "lora") for seed in ("1", "2")]
    cells = [
        cell(labels[0], 0.5),
        cell(labels[1], state=FAILED),
        cell(labels[2], state=WAITING),
        cell(labels[3], state=FAILED),
    ]
    comparison = of_rows(cells, axes=("tuning.name", "seed"))
    assert [mean_and_deviation(group, comparison) for group in records(comparison.groups)] == [
        "50.0 (1 of 2)",
        "unfinished",
    ]


def test_the_columns_of_a_pivot_are_as_many_as_its_cells_although_their_names_are_the_same():
    cells = [cell({"tuning.name": "head", "x.a": a, "y.a": b}, 0.5) for a in ("1", "2") for b in ("1", "2")]
    comparison = of_rows(cells, axes=("tuning.name", "x.a", "y.a"))
    assert pivot(comparison).header == ("tuning.name", "a 1, a 1", "a 1, a 2", "a 2, a 1", "a 2, a 2")
    named = [cell({"tuning.name": "head", "x": a, "y": b}, 0.5) for a in ("p", "p, q") for b in ("q, r", "r")]
    result = pivot(of_rows(named, axes=("tuning.name", "x", "y")))
    assert result.header[1:] == ("p, q, r", "p, r", "p, q, q, r", "p, q, r")
    assert [len(row) for row in result.rows] == [5]


def test_a_failure_is_reported_with_the_searched_value_if_there_is_one():
    rows = [
        cell({"seed": "1"}, state=FAILED, reason="a", **{"client.lr": 0.1}),
        cell({"seed": "2"}, state=FAILED, reason="b", run=""),
        cell({"seed": "3"}, 0.5),
        cell({"seed": "4"}, state=WAITING),
    ]
    comparison = of_rows(rows, axes=("seed",), searched="client.lr")
    assert comparison.failures == {"seed=1, client.lr=0.1": "a", "seed=2": "b"}
    assert not comparison.is_finished
    assert of_rows(rows[2:3], axes=("seed",)).is_finished
