"""Comparisons of real runs, in this process: the search, going on, extending, failing."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from tests.comparison.inline import run_inline
from tests.small import SMALL, write_small
from tests.small_language import dialogues, small_config, write_model, write_table
from tests.test_regression_runs import BRIGHTNESS, write_images

import fedelta
from fedelta import cli
from fedelta.assembly import site
from fedelta.comparison import compare, page
from fedelta.comparison.compare import Tally
from fedelta.comparison.pool import Event
from fedelta.comparison.reading import read_run
from fedelta.errors import ConfigError, RunError

ONE_ROUND = ["strategy.num_rounds=1"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def untimed(path: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "wall_seconds"} for row in rows(path)]


def test_a_grid_gives_tables_and_a_page_and_can_be_extended_by_a_seed(tmp_path, inline, monkeypatch):
    monkeypatch.setattr(compare, "render", page.render)
    config, out = write_small(tmp_path), tmp_path / "out"
    events: list[tuple[str, int, int]] = []
    over = {"tuning.name": ["head", "lora"], "seed": [1, 2]}
    result = fedelta.compare(
        config, over, out, overrides=ONE_ROUND, on_event=lambda event, tally: events.append(
            (event.kind, tally.num_ended, tally.rounds_done)
        ),
    )  # fmt: skip
    # Seed by seed, so that every row has a figure early.
    assert inline == [
        "tuning.name=head, seed=1",
        "tuning.name=lora, seed=1",
        "tuning.name=head, seed=2",
        "tuning.name=lora, seed=2",
    ]
    assert [event for event in events if event[0] == "finished"] == [("finished", n, n) for n in (1, 2, 3, 4)]
    assert result.is_finished
    head = result.groups.iloc[0]
    assert (head["num_seeds"], head["tuned_parameters"]) == (2, 330)
    runs = [out / "runs" / f"head-seed-{seed}" for seed in (1, 2)]
    accuracies = [json.loads((run / "summary.json").read_text())["final_accuracy"] for run in runs]
    assert head["accuracy_mean"] == pytest.approx(sum(accuracies) / 2)
    for name in ("table.csv", "table.md", "table.tex", "cells.csv", "report.html", "compare.toml"):
        assert (out / name).is_file()
    assert not (out / "search.csv").exists()
    sent = [json.loads(line)["payload_bytes"] for line in (runs[0] / "ledger.jsonl").read_text().splitlines()[1:]]
    assert float(rows(out / "cells.csv")[0]["mib_total"]) == pytest.approx(sum(sent) / 2**20, abs=1e-6)

    inline.clear()
    again = fedelta.compare(out / "compare.toml", {"seed": [1, 2, 3]})
    assert inline == ["tuning.name=head, seed=3", "tuning.name=lora, seed=3"]
    assert (again.name, again.groups["num_seeds"].tolist()) == ("small", [3, 3])
    pd.testing.assert_frame_equal(again.frame.iloc[[0, 1, 3, 4]].reset_index(drop=True), result.frame)


SEARCH = """
[compare.over]
"tuning.name" = ["head", "lora"]
seed = [1]
[compare.search]
key = "client.lr"
by = ["tuning.name"]
values = { head = [0.0001, 0.5], lora = [0.2, 1e9] }
"""


def test_the_search_chooses_by_validation_rows_whatever_the_test_labels_are(tmp_path, inline, run_cells, monkeypatch):
    config = write_small(tmp_path, text=SMALL + SEARCH)
    states: set[str] = set()

    def look(event, tally) -> None:
        if event.kind in ("finished", "failed"):
            states.update(row["state"] for row in rows(tmp_path / "out" / "cells.csv"))

    result = fedelta.compare(config, out=tmp_path / "out", overrides=ONE_ROUND, on_event=look)
    assert states == {"waiting", "finished"}
    trials = rows(tmp_path / "out" / "search.csv")
    assert [(row["tuning.name"], row["seed"], row["client.lr"]) for row in trials] == [
        ("head", "1", "0.0001"), ("head", "1", "0.5"), ("lora", "1", "0.2"), ("lora", "1", "1000000000.0"),
    ]  # fmt: skip
    # A rate that diverges is an answer: it is out, and nothing failed.
    assert trials[-1]["state"] == "failed"
    assert result.failures == {}
    for method, value in zip(("head", "lora"), result.groups["client.lr"], strict=True):
        measured = [row for row in trials if row["tuning.name"] == method and row["state"] == "finished"]
        best = max(float(row["validation_accuracy_percent"]) for row in measured)
        first = next(row for row in measured if float(row["validation_accuracy_percent"]) == best)
        assert (str(value), first["is_best"]) == (first["client.lr"], "true")
        assert result.frame["run"][result.frame["tuning.name"] == method].tolist() == [
            f"runs/{method}-seed-1-lr-{value}"
        ]

    inline.clear()
    original = site.read

    def permuted(source, **others: object):
        raw = original(source, **others)
        raw.test.targets.values[:] = raw.test.targets.values.flip(0)
        return raw

    monkeypatch.setattr(site, "read", permuted)
    monkeypatch.setattr(compare, "run_jobs", run_inline)  # not what ran with the original labels
    other = fedelta.compare(config, {"tuning.name": ["head"]}, tmp_path / "other", overrides=ONE_ROUND)
    assert untimed(tmp_path / "other" / "search.csv") == untimed(tmp_path / "out" / "search.csv")[:2]
    assert other.groups["client.lr"][0] == result.groups["client.lr"][0]
    monkeypatch.setattr(site, "read", original)
    monkeypatch.setattr(compare, "run_jobs", lambda jobs, **_: run_cells(inline.append(jobs) or jobs))
    fedelta.compare(config, out=tmp_path / "out", overrides=ONE_ROUND)
    assert inline == [[], []]  # the diverged trial is not tried again


def test_of_equal_accuracies_the_one_with_the_lower_loss_is_chosen(tmp_path, inline):
    search = '{key = "client.lr", values = [1e-5, 1e-9]}'  # too small to change a single prediction
    result = fedelta.compare(
        write_small(tmp_path),
        {"tuning.name": ["head"]},
        tmp_path / "out",
        overrides=[*ONE_ROUND, f"compare.search={search}"],
    )
    losses = [read_run(result.path / run).loss for run in result.trials["run"]]
    assert result.trials["accuracy"].nunique() == 1
    assert losses[0] != losses[1]
    assert result.trials["is_best"].tolist() == [loss == min(losses) for loss in losses]
    assert result.groups["client.lr"].tolist() == result.trials["client.lr"][result.trials["is_best"]].tolist()


def test_of_errors_the_lowest_is_chosen(tmp_path, inline):
    write_images(tmp_path / "train.parquet", 60, seed=0)
    write_images(tmp_path / "test.parquet", 20, seed=1)
    config = write_small(tmp_path, text=BRIGHTNESS.replace("FOLDER", str(tmp_path)))
    search = 'compare.search={key = "client.lr", values = [1e-6, 0.003]}'
    result = fedelta.compare(
        config, {"tuning.name": ["full"]}, tmp_path / "out", overrides=["strategy.num_rounds=2", search]
    )
    slow, fast = result.trials["rmse"]
    assert fast < slow
    assert result.trials["is_best"].tolist() == [False, True]
    (row,) = rows(tmp_path / "out" / "table.csv")
    assert row["client.lr"] == "0.003"
    assert float(row["rmse_mean"]) == pytest.approx(result.groups["rmse_mean"][0])
    assert "| root mean squared error | seeds |" in (tmp_path / "out" / "table.md").read_text()


def test_a_trial_that_diverged_counts_for_its_own_configuration_alone(tmp_path, inline):
    config = write_small(tmp_path)
    search = 'compare.search={key = "client.lr", values = [0.1, 1e30]}'
    options = {"over": {"tuning.name": ["head"]}, "out": tmp_path / "out"}
    fedelta.compare(config, **options, overrides=[*ONE_ROUND, search])
    for folder in ("search", "runs"):
        shutil.rmtree(tmp_path / "out" / folder)
    inline.clear()
    fedelta.compare(config, **options, overrides=[*ONE_ROUND, search, "client.batch_size=4"])
    assert sorted(inline) == [
        "search: tuning.name=head, client.lr=0.1",
        "search: tuning.name=head, client.lr=1e+30",
        "tuning.name=head, client.lr=0.1",
    ]


def test_a_comparison_goes_on_from_anywhere(tmp_path, inline, monkeypatch):
    for label, gray in (("a", 40), ("b", 200)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(8):
            Image.new("L", (8, 8), gray + number).save(tmp_path / "images" / label / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    options = ["data.source=images", "partition.name=iid", "partition.num_clients=3", *ONE_ROUND]
    fedelta.compare(write_small(tmp_path), {"seed": [1]}, "out", overrides=options)
    inline.clear()
    monkeypatch.chdir("/")
    assert fedelta.compare(tmp_path / "out" / "compare.toml").is_finished
    assert inline == []


def test_what_changes_no_result_may_differ(tmp_path, inline):
    config = write_small(tmp_path)
    fedelta.compare(config, {"seed": [1]}, tmp_path / "out", overrides=ONE_ROUND)
    inline.clear()
    tracked = [*ONE_ROUND, 'tracking.project="another"']
    assert fedelta.compare(config, {"seed": [1]}, tmp_path / "out", overrides=tracked).is_finished
    assert inline == []


def test_a_narrower_grid_says_what_its_tables_no_longer_show(tmp_path, inline, caplog):
    config = write_small(tmp_path)
    fedelta.compare(config, {"seed": [1, 2]}, tmp_path / "out", overrides=ONE_ROUND)
    assert "will not show" not in caplog.text
    fedelta.compare(config, {"seed": [2]}, tmp_path / "out", overrides=ONE_ROUND)
    assert "will not show 1 cell of the last comparison there; the runs stay" in caplog.text


def test_a_trial_that_crashes_is_tried_again_before_a_value_is_chosen(tmp_path, inline, run_cells, monkeypatch):
    def crash_at_the_first(jobs, **_: object):
        inline.append(len(jobs))
        if len(jobs) == 2:
            jobs[0].failure.write_text("Crash: the process was ended by SIGKILL.")
            yield Event("failed", jobs[0])
            yield from run_cells(jobs[1:])
        else:
            yield from run_cells(jobs)

    monkeypatch.setattr(compare, "run_jobs", crash_at_the_first)
    options = (write_small(tmp_path), {"tuning.name": ["head"]}, tmp_path / "out")
    search = [*ONE_ROUND, 'compare.search={key = "client.lr", values = [0.1, 0.2]}']
    result = fedelta.compare(*options, overrides=search)
    assert result.failures == {
        "tuning.name=head": "SearchError: no value of `client.lr` was chosen, because a trial failed: "
        "Crash: the process was ended by SIGKILL."
    }
    assert fedelta.compare(*options, overrides=search).is_finished
    assert inline == [2, 0, 1, 1]


def test_a_method_none_of_whose_values_trains_fails_alone(tmp_path, inline):
    search = '{key = "client.lr", by = ["tuning.name"], values = {head = [0.1], lora = [1e30]}}'
    over = {"tuning.name": ["head", "lora"]}
    tallies: list[Tally] = []
    result = fedelta.compare(
        write_small(tmp_path),
        over,
        tmp_path / "out",
        overrides=[f"compare.search={search}"],
        on_event=lambda event, tally: tallies.append(tally),
    )
    # Two trials, a cell, and the cell that is not run.
    assert (tallies[-1].num_cells, tallies[-1].num_ended) == (4, 4)
    assert result.groups["num_seeds"].tolist() == [1, 0]
    assert list(result.failures) == ["tuning.name=lora"]
    assert result.failures["tuning.name=lora"].startswith(
        "SearchError: no value of `client.lr` was chosen, because a trial failed: RoundError: "
    )


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedelta", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def test_a_failed_cell_does_not_lose_the_others_and_is_tried_again(tmp_path, inline, command):
    out = tmp_path / "out"
    asked = (
        "compare",
        write_small(tmp_path),
        "--over",
        "client.lr=0.1,1e30",
        "--set",
        "tuning.name=full",
        "--out",
        out,
    )
    code, printed, err = command(*asked)
    assert code == 1
    assert "1 of 2 cells failed; the others are in" in err
    assert "2/2 client.lr=1e+30: failed: RoundError: round 1: 0 of 3 replies are usable" in err
    assert "failed" in printed
    assert [row["state"] for row in rows(out / "table.csv")] == ["finished", "failed"]
    assert "client.lr" in (out / "failures" / "lr-1e+30.txt").read_text()
    inline.clear()
    code, printed, err = command(*asked, "--quiet")
    assert (code, printed, inline) == (1, "", ["client.lr=1e+30"])
    assert "hint:" in err


def test_the_command_prints_the_table_and_nothing_when_quiet(tmp_path, inline, command):
    asked = (
        "compare",
        write_small(tmp_path),
        "--over",
        "seed=1,2",
        "--set",
        "strategy.num_rounds=1",
        "--out",
        tmp_path / "out",
    )
    code, printed, err = command(*asked)
    assert code == 0, err
    assert "report.html" in printed
    assert "2/2 seed=2:" in err
    assert command(*asked, "--quiet") == (0, "", "")


BAD = {
    "an axis that does not exist": (("--over", "client.lrr=1,2"), "did you mean `client.lr`? (in every cell)"),
    "a cell that is wrong": (
        ("--over", "client.lr=0.1,-1"),
        "`client.lr` is -1, expected: greater than 0 (in 'client.lr=-1'",
    ),
    "no axis": ((), "nothing is varied: there is no axis"),
    "no value": (("--over", "seed=1,"), "value 2 is empty"),
    "an unknown key of the table": (("--set", "compare.ovr=1"), "`compare.ovr` is unknown; did you mean 'over'?"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_grid_ends_with_code_2_and_nothing_written(tmp_path, inline, command, case):
    options, message = BAD[case]
    code, printed, err = command("compare", write_small(tmp_path), *options, "--out", tmp_path / "out")
    assert (code, printed) == (2, "")
    assert message in err
    assert err.count("error:") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_a_directory_of_another_grid_is_refused_and_left_as_it_was(tmp_path, inline):
    config, out = write_small(tmp_path), tmp_path / "out"
    fedelta.compare(config, {"seed": [1]}, out, overrides=ONE_ROUND)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"`strategy\.num_rounds` is 1 there, 2 now"):
        fedelta.compare(config, {"seed": [1]}, out, overrides=["strategy.num_rounds=2"])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_stopping_leaves_the_tables_and_says_how_to_go_on(tmp_path, inline, run_cells, command, monkeypatch):
    def stopped(jobs, **_: object):
        yield from run_cells(jobs[:1])
        if jobs:
            raise KeyboardInterrupt

    monkeypatch.setattr(compare, "run_jobs", stopped)
    monkeypatch.setattr(compare, "render", page.render)
    out = tmp_path / "out"
    code, _, err = command(
        "compare", write_small(tmp_path), "--over", "seed=1,2", "--out", out, *("--set", ONE_ROUND[0])
    )
    assert code == 130
    assert f"stopped; continue with: fedelta compare {out / 'compare.toml'}" in err
    assert [row["state"] for row in rows(out / "cells.csv")] == ["finished", "waiting"]
    assert "1 of 2 cells finished" in (out / "report.html").read_text()


def test_a_configuration_made_in_python_can_be_varied(tmp_path, inline):
    config = fedelta.load_config(write_small(tmp_path), ONE_ROUND)
    choices = {"two": {"strategy.clients_per_round": 2}, "all": {"strategy.clients_per_round": 6}}
    result = fedelta.compare(config, {"cohort": choices}, tmp_path / "out")
    assert result.groups["cohort"].tolist() == ["two", "all"]
    two, everyone = result.groups["total_bytes"]
    assert everyone == 3 * two
    with pytest.raises(ConfigError, match="nothing is varied"):
        fedelta.compare(config)


@pytest.mark.parametrize(
    "strategy", [["strategy.name=fedlama"], ["strategy.name=fedlama-auto", "byte_budget_mib=0.2"]], ids=lambda it: it[0]
)
def test_a_comparison_of_a_strategy_that_plans_for_itself_goes_on_where_it_was(tmp_path, inline, strategy):
    # What the strategy makes of steps and bytes is no part of the configurations that are compared.
    config, out = write_small(tmp_path), tmp_path / "out"
    overrides = ["client.local_epochs=", "strategy.num_rounds=2", *strategy, "strategy.tau=2"]
    fedelta.compare(config, {"seed": [1]}, out, overrides=overrides)
    result = fedelta.compare(config, {"seed": [1, 2]}, out, overrides=overrides)
    assert inline == ["seed=1", "seed=2"]
    assert result.is_finished


def older(run: Path) -> None:
    rounds = run / "rounds.jsonl"
    rounds.write_text(rounds.read_text().replace('"measures"', '"accuracy"'))


def changed(run: Path) -> None:
    ledger = run / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"direction": "up"', '"direction": "down"', 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [(older, "an older version of fedelta wrote them"), (changed, "ledger.jsonl' is not as the run wrote it")],
)
def test_an_unusable_finished_run_is_reported_and_the_others_continue(tmp_path, inline, caplog, change, reason):
    config, out, over = write_small(tmp_path), tmp_path / "out", {"seed": [1, 2]}
    fedelta.compare(config, {"seed": [1]}, out, overrides=ONE_ROUND)
    change(out / "runs" / "seed-1")
    result = fedelta.compare(config, over, out, overrides=ONE_ROUND)
    assert result.frame["state"].tolist() == ["failed", "finished"]
    [told] = result.failures.values()
    assert reason in told
    assert reason in caplog.text
    assert reason in rows(out / "cells.csv")[0]["reason"]
    assert result.groups["num_seeds"].tolist() == [1]


def test_answers_of_language_models_are_compared_too(tmp_path, inline):
    model, table = write_model(tmp_path / "model"), write_table(tmp_path / "rows.jsonl", dialogues(36))
    (tmp_path / "small.toml").write_text(small_config(model, table))
    result = fedelta.compare(tmp_path / "small.toml", {"seed": [1, 2]}, tmp_path / "out", overrides=ONE_ROUND)
    (row,) = rows(tmp_path / "out" / "table.csv")
    matches = [json.loads(path.read_text())["measures"]["rouge_l"] for path in tmp_path.glob("out/runs/*/summary.json")]
    assert float(row["rouge_l_mean_percent"]) == pytest.approx(50 * sum(matches), abs=1e-4)
    assert result.groups["exact_match_mean"].notna().all()
    assert "exact match, %" in (tmp_path / "out" / "table.md").read_text()
