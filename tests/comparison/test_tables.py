"""Tables of invented comparisons, as files have them."""

from __future__ import annotations

import csv
import io
import re

from tests.comparison.invented import METHODS, cell, invented, of_rows
from tests.report.pages import Page

from fedelta.comparison.page import render
from fedelta.comparison.tables import cells_csv, search_csv, table_csv, table_md, table_tex
from fedelta.record.neutral import markdown
from fedelta.record.numbers import UNKNOWN
from fedelta.tasks.base import Measure


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_table_has_plain_numbers_and_units_in_its_header():
    assert rows(table_csv(invented(METHODS)))[1] == {
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
        "front_is_clear": "true",
        "state": "finished",
        "reason": "",
    }


def test_the_relative_cost_is_shown_if_groups_travelled_less_often():
    cheaper = invented(METHODS, relative_cost=0.4217)
    assert [row["relative_cost"] for row in rows(table_csv(cheaper)) + rows(cells_csv(cheaper))] == ["0.4217"] * 6
    assert "| MiB in total | relative cost, % | time |" in table_md(cheaper)
    assert "| 1.00 | 42.2 | 3.0\N{NARROW NO-BREAK SPACE}s |" in table_md(cheaper)
    assert "| relative cost" not in table_md(invented(METHODS, relative_cost=1.0))


def test_epsilon_is_shown_where_a_run_has_one_and_is_the_largest_of_the_seeds():
    # Seed 2 spends 0.5 more: 3.254 and 3.754.
    private = invented(METHODS, epsilons={"lora": 3.253941})
    assert [row["epsilon"] for row in rows(table_csv(private))] == ["", "3.753941"]
    assert [row["epsilon"] for row in rows(cells_csv(private))] == ["", "", "3.253941", "3.753941"]
    text = table_md(private)
    assert "| MiB in total | epsilon | time |" in text
    assert f"| 1.00 | {UNKNOWN} | 3.0\N{NARROW NO-BREAK SPACE}s |" in text
    assert "| 2.00 | 3.754 | 3.0\N{NARROW NO-BREAK SPACE}s |" in text
    assert "Runs on the same data, those of a search too, add up." in text
    assert "psilon" not in table_md(invented(METHODS)) + table_csv(invented(METHODS)) + cells_csv(invented(METHODS))


def test_exits_have_columns_where_some_run_has_them():
    comparison = invented(METHODS, exits=True)
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
    assert "Mean over exits, %" in Page(render(comparison)).text.replace("\xa0", " ")
    for text in (table_md(invented(METHODS)), table_csv(invented(METHODS)), cells_csv(invented(METHODS))):
        assert "exit" not in text


def test_rows_stay_whole_where_a_cell_with_exits_failed():
    comparison = invented({"tuning.name": ["head", "lora", "bias"], "seed": ["1", "2"]}, exits=True, failed=("bias",))
    for text in (table_csv(comparison), cells_csv(comparison), search_csv(comparison)):
        assert len({len(row) for row in csv.reader(io.StringIO(text))}) == 1
    assert [row["state"] for row in rows(cells_csv(comparison))][-1] == "failed"


def test_a_failed_group_is_in_the_tables_with_its_reason():
    comparison = invented(METHODS, failed=("lora",))
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
    comparison = invented(METHODS)
    assert [(row["tuning.name"], row["seed"], row["accuracy_percent"]) for row in rows(cells_csv(comparison))] == [
        ("head", "1", "50"), ("head", "2", "51"), ("lora", "1", "52"), ("lora", "2", "53"),
    ]  # fmt: skip
    assert [(row["validation_accuracy_percent"], row["is_best"]) for row in rows(search_csv(comparison))] == [
        ("50", "true"), ("53", "false"),
    ]  # fmt: skip


def test_a_measure_that_should_be_low_is_called_by_its_name_and_the_lowest_is_the_best():
    error = Measure("mae", "mean error", higher_is_better=False, unit="mm")
    axes = {"tuning.name": ["head", "lora"], "tuning.r": ["2", "4"], "seed": ["1", "2"]}
    comparison = invented(axes, primary=error)
    # Of `head` 0.505 mm for 1 MiB, of `lora` 0.525 mm for 2.
    assert comparison.groups["on_pareto_front"].tolist() == [True, True, False, False]
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


def test_the_members_of_the_front_are_named_in_the_table():
    # `useless` sends four times as much as `head` for the same accuracy.
    comparison = invented({"tuning.name": ["head", "lora", "useless"], "tuning.r": ["2", "4"], "seed": ["1", "2"]})
    assert comparison.groups["on_pareto_front"].tolist() == [True, True, True, True, False, False]
    assert table_md(comparison).count("| front |") == 1  # the header
    assert table_md(comparison).count("| within noise |") == 4  # with r 2 and r 4 the same
    marked = {row["tuning.name"]: row["on_pareto_front"] for row in rows(table_csv(comparison))}
    assert marked == {"head": "true", "lora": "true", "useless": "false"}
    useless = [line for line in table_md(comparison).splitlines() if line.startswith("| useless | 2 |")]
    assert useless[0].endswith("| 3.0\N{NARROW NO-BREAK SPACE}s |  |")


def test_the_note_says_what_the_times_are_worth():
    note = "for orientation only: it is measured beside other cells, of which as many run side by side as the machine"
    assert note in table_md(invented(METHODS))
    assert note in Page(render(invented(METHODS))).text


def test_a_table_in_latex_has_formulas_lines_and_a_caption():
    comparison = invented(
        {"tuning.name": ["head", "lora"], "tuning.r": ["2", "4"], "seed": ["1", "2"]}, failed=("head",)
    )
    text = table_tex(comparison)
    lines = text.splitlines()
    assert lines[0] == r"% invented <&> $x: \input this file in a document with \usepackage{booktabs}."
    header = next(line for line in lines if line.startswith("tuning.name & tuning.r"))
    assert header == (
        r"tuning.name & tuning.r & client.lr & accuracy, \% & seeds & tuned parameters & "
        r"MiB per client and round, down and up & MiB in total & time & front \\"
    )
    assert r"lora & 2 & 0.1 & $52.5 \pm 0.7$ & 2 & 2,000 & 0.500 & 2.00 & 3.0\,s & within noise \\" in lines
    assert r"head & 2 & 0.1 & failed & 0 & -- & -- & -- & -- &  \\" in lines
    assert r"lora & \textbf{\boldmath $52.5 \pm 0.7$} & \textbf{\boldmath $52.5 \pm 0.7$} \\" in lines
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lllrrrrrrr}", r"\begin{tabular}{lrr}"):
        assert rule in lines
    captions = [line for line in lines if line.startswith(r"\caption")]
    assert [caption.startswith(r"\caption{Accuracy in \% after the last round") for caption in captions] == [True, True]
    assert r"mean $\pm$ sample standard deviation over the seeds" in captions[0]
    assert r"unless \texttt{data.evaluate\_on} says otherwise" in captions[0]
    assert r"\label{tab:invented-x-groups}" in lines


def test_a_spreadsheet_runs_no_header_and_no_label():
    comparison = of_rows([cell({"=axis()": "@label"}, 0.5)], axes=("=axis()",))
    for text in (table_csv(comparison), cells_csv(comparison)):
        assert rows(text)[0]["'=axis()"] == "'@label"


def test_no_name_leaves_its_place_in_latex():
    labels = ["[q]", "*", "a & b \\\\", "50 % $x^2$ _{y}~", "new\nline", r"\input{a}", "=1+1", "1e-05"]
    comparison = of_rows(
        [cell({"@set%ting": label, "r_k": rank}, 0.5) for label in labels for rank in ("1", "2")],
        axes=("@set%ting", "r_k"),
        name="50 %\n\\end{document}",
    )
    text = table_tex(comparison)
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert [line.split(" & 1 & ")[0] for line in body[::2]] == [
        "{[}q{]}", "{*}", r"a \& b \textbackslash{}\textbackslash{}",
        r"50 \% \$x\textasciicircum{}2\$ \_\{y\}\textasciitilde{}",
        "new line", r"\textbackslash{}input\{a\}", "=1+1", "1e-05",
    ]  # fmt: skip
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {8}
    assert text.splitlines()[0].startswith(r"% 50 % \end{document}: ")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
