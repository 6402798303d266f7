"""Tables and page of invented comparisons."""

from __future__ import annotations

import csv
import io
import re
from itertools import product
from pathlib import Path

import pytest
from rich.console import Console
from tests.report.test_report import Page

from fedelta.comparison.display import print_table
from fedelta.comparison.outcomes import CellState, Outcome, Trial, group_cells
from fedelta.comparison.page import render
from fedelta.comparison.result import Comparison, mean_and_deviation, pivot
from fedelta.comparison.tables import cells_csv, one_line, search_csv, table_csv, table_md
from fedelta.record.neutral import markdown
from fedelta.record.numbers import UNKNOWN
from fedelta.tasks.base import Measure
from fedelta.tasks.classification import ACCURACY

FAILURE = "RoundError: round 1: 0 of 3 replies are usable:\n  - NaN | <b>\nhint: lower it\n"
MIB = 2**20


def invented(
    axes: dict[str, list[str]],
    *,
    failed: tuple[str, ...] = (),
    task_axes: tuple[str, ...] = (),
    searched: bool = True,
    points: float = 2,
    relative_cost: float | None = None,
    exits: bool = False,
    primary: Measure = ACCURACY,
) -> Comparison:
    """Each label of the first axis sends twice as much as the one before, and is 2 points better, or as many as said.

    A label `useless` is as accurate as the first. With `exits` all but the first have them.
    """
    cells = []
    for number, labels in enumerate(product(*axes.values())):
        of_first = axes[next(iter(axes))].index(labels[0])
        gained = 0 if labels[0] == "useless" else points / 100 * of_first
        seed = number % 2
        done = Outcome(
            final=0.5 + gained + 0.01 * seed,
            loss=1.0,
            tuned_parameters=1000 * 2**of_first,
            bytes_per_client=MIB * 2**of_first / 4,
            total_bytes=MIB * 2**of_first,
            wall_seconds=3.0,
            peak_memory_bytes=0,
            curve=((1, 0.1), (2, 0.5 + gained)),
            citations="",
            relative_cost=relative_cost,
            first_exit=0.2 + 0.02 * seed if exits and of_first else None,
            mean_exit=0.3 + 0.03 * seed if exits and of_first else None,
        )
        names = dict(zip(axes, labels, strict=True))
        lost = labels[0] in failed
        cells.append(
            CellState(names, 0.1 if searched else None, "runs/x", None if lost else done, FAILURE if lost else None)
        )
    trials = [Trial(cells[0], is_best=True), Trial(cells[-1], is_best=False)] if searched else []
    names = tuple(name for name in axes if name != "seed")
    return Comparison(
        name="invented <&> $x",
        path=Path("out"),
        axes=names,
        task_axes=task_axes,
        searched="client.lr" if searched else None,
        groups=tuple(group_cells(cells, "seed", task_axes, primary)),
        trials=tuple(trials),
        asked="[compare.over]\n",
        primary=primary,
    )


SMALL = {"tuning.name": ["head", "lora"], "seed": ["1", "2"]}
METHODS = [f"m{number}" for number in range(6)]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_table_has_plain_numbers_and_units_in_its_header():
    assert rows(table_csv(invented(SMALL)))[1] == {
        "tuning.name": "lora",
        "client.lr": "0.1",
        # (52 + 53) / 2, and the sample deviation of two values one point apart: 1 / sqrt(2).
        "accuracy_mean_percent": "52.5",
        "accuracy_deviation_percent": "0.707107",
        "num_seeds": "2",
        "tuned_parameters": "2000",
        "mib_per_client_and_round_both_directions": "0.5",
        "mib_total": "2",
        "relative_cost": "",
        "wall_seconds": "3",
        "on_pareto_front": "true",
        "state": "finished",
        "reason": "",
    }


def test_the_relative_cost_is_told_where_groups_travelled_less_often():
    cheaper = invented(SMALL, relative_cost=0.4217)
    assert [row["relative_cost"] for row in rows(table_csv(cheaper)) + rows(cells_csv(cheaper))] == ["0.4217"] * 6
    assert "| MiB in total | relative cost, % | time |" in table_md(cheaper)
    assert "| 1.00 | 42.2 | 3.0 s |" in table_md(cheaper)
    assert "| relative cost" not in table_md(invented(SMALL, relative_cost=1.0))


def test_exits_have_columns_where_some_run_has_them():
    comparison = invented(SMALL, exits=True)
    head, lora = rows(table_csv(comparison))
    # Seeds at 20 and 22, and at 30 and 33: 3 / sqrt(2) is 2.12.
    assert (lora["first_exit_accuracy_percent"], lora["mean_exit_accuracy_percent"]) == ("21", "31.5")
    assert lora["mean_exit_accuracy_deviation_percent"] == "2.12132"
    assert head["first_exit_accuracy_percent"] == head["mean_exit_accuracy_percent"] == ""
    assert [row["mean_exit_accuracy_percent"] for row in rows(cells_csv(comparison))] == ["", "", "30", "33"]
    assert [row["first_exit_accuracy_percent"] for row in rows(search_csv(comparison))] == ["", "22"]
    text = table_md(comparison)
    assert "| accuracy, % | at the first exit, % | mean over exits, % | seeds |" in text
    assert "| lora | 0.1 | 52.5 ± 0.7 | 21.0 | 31.5 ± 2.1 | 2 |" in text
    assert f"| head | 0.1 | 50.5 ± 0.7 | {UNKNOWN} | {UNKNOWN} | 2 |" in text
    assert "mean over exits, %" in Page(render(comparison)).text
    for text in (table_md(invented(SMALL)), table_csv(invented(SMALL)), cells_csv(invented(SMALL))):
        assert "exit" not in text


def test_rows_stay_whole_where_a_cell_with_exits_failed():
    comparison = invented({"tuning.name": ["head", "lora", "bias"], "seed": ["1", "2"]}, exits=True, failed=("bias",))
    for text in (table_csv(comparison), cells_csv(comparison), search_csv(comparison)):
        assert len({len(row) for row in csv.reader(io.StringIO(text))}) == 1
    assert [row["state"] for row in rows(cells_csv(comparison))][-1] == "failed"


@pytest.mark.parametrize(("relative_cost", "exits"), [(None, False), (0.5, False), (None, True), (0.5, True)])
def test_the_table_in_a_terminal_has_each_figure_below_its_name(relative_cost, exits):
    output = io.StringIO()
    print_table(invented(SMALL, relative_cost=relative_cost, exits=exits), Console(file=output, width=300))
    lines = [re.split(r"\s{2,}", line.strip()) for line in output.getvalue().splitlines()]
    header = next(line for line in lines if line[0] == "tuning.name")
    row = next(line for line in lines if line[0] == "lora")
    assert dict(zip(header, row, strict=False)) == {
        "tuning.name": "lora",
        "client.lr": "0.1",
        "accuracy, %": "52.5 ± 0.7",
        **({"exit 1, %": "21.0", "mean exit, %": "31.5 ± 2.1"} if exits else {}),
        "seeds": "2",
        "tuned": "2,000",
        "MiB/round": "0.500",
        "MiB": "2.00",
        **({"cost, %": "50.0"} if relative_cost else {}),
        "time": "3.0 s",
    }


def test_a_failed_group_is_in_the_tables_with_its_reason():
    comparison = invented(SMALL, failed=("lora",))
    reason = "RoundError: round 1: 0 of 3 replies are usable: - NaN | <b>"
    row = rows(table_csv(comparison))[1]
    assert (row["state"], row["reason"], row["accuracy_mean_percent"]) == ("failed", reason, "")
    assert [cell["state"] for cell in rows(cells_csv(comparison))] == ["finished", "finished", "failed", "failed"]
    assert f"- tuning.name=lora, seed=2, client.lr=0.1: {markdown(reason)}" in table_md(comparison)
    assert "| lora | 0.1 | failed | 0 |" in table_md(comparison)
    assert reason in Page(render(comparison)).text
    assert list(comparison.failures) == [
        "tuning.name=lora, seed=1, client.lr=0.1", "tuning.name=lora, seed=2, client.lr=0.1",
    ]  # fmt: skip


def test_the_cells_have_a_row_each_and_so_have_the_trials():
    comparison = invented(SMALL)
    assert [(row["tuning.name"], row["seed"], row["accuracy_percent"]) for row in rows(cells_csv(comparison))] == [
        ("head", "1", "50"), ("head", "2", "51"), ("lora", "1", "52"), ("lora", "2", "53"),
    ]  # fmt: skip
    assert [(row["validation_accuracy_percent"], row["is_best"]) for row in rows(search_csv(comparison))] == [
        ("50", "true"), ("53", "false"),
    ]  # fmt: skip


def test_the_pivot_has_the_first_axis_downwards_and_the_best_of_each_column_bold():
    comparison = invented({"tuning.name": ["head", "lora"], "tuning.r": ["2", "4"], "seed": ["1", "2"]})
    found = pivot(comparison)
    assert found.header == ("tuning.name", "r 2", "r 4")
    assert found.rows == (("head", "50.5 ± 0.7", "50.5 ± 0.7"), ("lora", "52.5 ± 0.7", "52.5 ± 0.7"))
    assert found.best == {(1, 1), (1, 2)}
    assert "| lora | **52.5 ± 0.7** | **52.5 ± 0.7** |" in table_md(comparison)
    assert pivot(invented(SMALL)) is None


def test_means_that_look_the_same_are_equally_good_and_a_failed_one_is_not():
    axes = {"tuning.name": ["head", "bias", "lora"], "tuning.r": ["2", "4"], "seed": ["1", "2"]}
    # 50.50 and 50.53 are both printed as 50.5, 50.56 would be 50.6.
    found = pivot(invented(axes, points=0.03, failed=("lora",)))
    assert [row[1] for row in found.rows] == ["50.5 ± 0.7", "50.5 ± 0.7", "failed"]
    assert found.best == {(0, 1), (0, 2), (1, 1), (1, 2)}
    # The best by number, where text would sort otherwise: 50.5, 80.5 and 110.5.
    assert pivot(invented(axes, points=30)).best == {(2, 1), (2, 2)}
    assert pivot(invented(axes, failed=("head", "bias", "lora"))).best == frozenset()


def test_an_accuracy_says_how_many_seeds_are_missing():
    done, lost = invented(SMALL).cells[0], invented(SMALL, failed=("head",)).cells[1]
    (group,) = group_cells([done, lost], "seed", [], ACCURACY)
    assert mean_and_deviation(group, ACCURACY) == "50.0 (1 of 2)"
    (waiting,) = group_cells([CellState({"tuning.name": "head", "seed": "1"}), lost], "seed", [], ACCURACY)
    assert mean_and_deviation(waiting, ACCURACY) == "unfinished"


def test_a_long_reason_is_cut_and_a_traceback_left_out():
    assert one_line("ValueError: a\nb\n\nTraceback ...") == "ValueError: a b"
    assert len(one_line("x" * 999)) == 301


def test_a_measure_that_should_be_low_is_called_by_its_name_and_the_lowest_is_the_best():
    error = Measure("mae", "mean error", higher_is_better=False, unit="mm")
    axes = {"tuning.name": ["head", "lora"], "tuning.r": ["2", "4"], "seed": ["1", "2"]}
    comparison = invented(axes, primary=error)
    # Of `head` 0.505 mm for 1 MiB, of `lora` 0.525 mm for 2.
    assert [group.on_front for group in comparison.groups] == [True, True, False, False]
    head, *_ = rows(table_csv(comparison))
    assert (head["mae_mean"], head["mae_deviation"]) == ("0.505", "0.007071")
    assert [row["mae"] for row in rows(cells_csv(comparison))][:2] == ["0.5", "0.51"]
    assert rows(search_csv(comparison))[0]["validation_mae"] == "0.5"
    text = table_md(comparison)
    assert "| tuning.name | tuning.r | client.lr | mean error, mm | seeds |" in text
    assert "| head | **0.505 ± 0.007** | **0.505 ± 0.007** |" in text
    assert "Mean error in mm after the last round" in text
    page = Page(render(comparison)).text
    for wanted in ("Mean error in mm", "Mean error against traffic and rounds", "mean error on validation rows"):
        assert wanted in page
    assert "ccuracy" not in page


PAGES = {
    "few groups": ({**SMALL}, (), 2),
    "two tasks": ({"tuning.name": METHODS, "setting": ["a", "b"], "seed": ["1", "2"]}, ("setting",), 4),
    # 12 in each of two tasks: numbered, wide, no curves.
    "many groups": (
        {"tuning.name": METHODS, "tuning.r": ["2", "4"], "setting": ["a", "b"], "seed": ["1", "2"]},
        ("setting",),
        2,
    ),
    "one seed": ({"tuning.name": ["head", "lora"]}, (), 2),
    "nothing but seeds": ({"seed": ["1", "2"]}, (), 2),
}


@pytest.mark.parametrize("case", PAGES)
def test_a_page_is_whole_and_has_its_figures(case):
    axes, task_axes, num_figures = PAGES[case]
    comparison = invented(axes, task_axes=task_axes)
    page = Page(render(comparison))
    assert sum(tag == "svg" and name == "role" for tag, name, _ in page.attributes) == num_figures
    assert "invented <&> $x" in page.text
    assert not [value for _, name, value in page.attributes if name in ("src", "href") and not value.startswith("#")]


def test_a_page_without_any_result_yet_says_so():
    page = Page(render(invented(SMALL, failed=("head", "lora"))))
    assert "0 of 4 cells finished" in page.text
    assert not [value for tag, name, value in page.attributes if tag == "svg" and name == "role"]


def test_the_members_of_the_front_are_named_in_the_table():
    # `useless` sends four times as much as `head` for the same accuracy.
    comparison = invented({"tuning.name": ["head", "lora", "useless"], "tuning.r": ["2", "4"], "seed": ["1", "2"]})
    assert [group.on_front for group in comparison.groups] == [True, True, True, True, False, False]
    assert table_md(comparison).count("| front |") == 5  # four rows, and the header
    marked = {row["tuning.name"]: row["on_pareto_front"] for row in rows(table_csv(comparison))}
    assert marked == {"head": "true", "lora": "true", "useless": "false"}
    useless = [line for line in table_md(comparison).splitlines() if line.startswith("| useless | 2 |")]
    assert useless[0].endswith("| 3.0 s |  |")


def test_the_note_says_what_the_times_are_worth():
    note = "for orientation only: it is measured beside other cells, of which as many run side by side as the machine"
    assert note in table_md(invented(SMALL))
    assert note in Page(render(invented(SMALL))).text
