from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.report.pages import cells, fixed_colours, lines, opacities, page_of, plain, rows, shown, svgs, text_of
from tests.report.synthetic import SMALL, history_of, make_run, rewrite

from fedelta.cli.base import conclude
from fedelta.errors import RunError
from fedelta.experiment import Result
from fedelta.federation.records import Transfer
from fedelta.record.compute import area, read_compute
from fedelta.record.history import read_histories
from fedelta.record.ledger import Ledger, opening_row
from fedelta.record.numbers import UNKNOWN
from fedelta.record.rundir import CONFIG, EXITS, PARTITION, RunDirectory
from fedelta.report.drawing import Chart
from fedelta.report.exit_plots import MAX_LABELS, exits_by_round, measure_by_cost, spread
from fedelta.report.exit_section import section
from fedelta.report.exits import Exits, read_exits
from fedelta.report.headline import headline
from fedelta.seeds import stream
from fedelta.tasks.classification import ACCURACY

WITH_EXITS = dataclasses.replace(SMALL, num_exits=3)
GROWING = [[0.2, 0.3, 0.4], [0.3, 0.5, 0.7], [0.4, 0.6, 0.9]]
# Trapezoids of (0.4 + 0.6) / 2 and (0.6 + 0.9) / 2 over steps of 10 and 40: (5 + 30) / 50 = 0.7; over steps of 1 and 1
# 1.25 / 2 = 0.625. The mean of the last round is 1.9 / 3 = 0.633.
COSTS = {"flops": [10e6, 20e6, 60e6], "milliseconds": [1.0, 2.0, 3.0], "machine": {"device": "cpu", "num_threads": 2}}


def by_hand(path: Path, accuracies: Sequence[Sequence[float]] = GROWING, costs: object = None, **exits: object) -> Path:
    """A run whose records hold these accuracies by exit, one list a round, and `exits.json` where there are costs."""
    shape = dataclasses.replace(
        WITH_EXITS, num_exits=len(accuracies[0]), num_rounds=len(accuracies), num_finished=len(accuracies)
    )
    run = make_run(path, dataclasses.replace(shape, exits=exits))
    records = zip(run.rounds.read(), accuracies, strict=True)
    rewrite(run, [{**record, "measures_by_exit": {"accuracy": accuracies}} for record, accuracies in records])
    if costs is not None:
        (path / EXITS).write_text(json.dumps(costs))
    return path


def send(path: Path, *transfers: Transfer) -> Path:
    """`path`, in whose ledger nothing but these payloads is."""
    (path / "ledger.jsonl").write_bytes(opening_row(backbone_bytes=1000))
    Ledger.read(path / "ledger.jsonl").append(transfers)
    return path


def exits_of(path: Path) -> Exits:
    exits = read_exits(history_of(path))
    assert exits is not None
    return exits


def section_text(*paths: Path) -> str:
    """What the section says; nothing where there is none."""
    exits = section(read_histories(paths))
    return "" if exits is None else shown(exits).plain


def headline_text(path: Path) -> str:
    return shown(headline(history_of(path))).plain


def table_of(*paths: Path) -> list[list[str]]:
    """Cells of the table of exits, by row."""
    exits = section(read_histories(paths))
    assert exits is not None
    return cells(exits.table)


def panels_of(runs: Mapping[int, Exits], measured: str = "") -> list[dict[str, Any]]:
    spec = measure_by_cost(runs, {index: f"run {index}" for index in runs}, measured).spec
    panels: list[dict[str, Any]] = spec.get("hconcat", [spec])
    return panels


def axis(panel: dict[str, Any], channel: str) -> dict[str, Any]:
    encoding: dict[str, Any] = panel["layer"][-1]["encoding"][channel]
    return encoding


def names_in(chart: Chart) -> list[tuple[str, float]]:
    """The names beside the ends of curves, with the heights of those ends."""
    _, names, *_ = chart.spec["layer"]
    return [(row["name"], row["end"]) for row in rows(names)]


@pytest.mark.parametrize(
    ("accuracies", "costs", "expected"),
    [
        ([0.4, 0.6, 0.9], [10, 20, 60], 0.7),
        ([0.4, 0.6, 0.9], [1000, 2000, 6000], 0.7),  # in any unit
        ([0.25, 0.25, 0.25], [3, 4, 9], 0.25),  # exits that are equally good
        ([0.9, 0.5], [1, 3], 0.7),  # a deeper one that is worse
        ([0.9], [4], None),
        ([0.4, 0.6, 0.9], [1, 2, 2], None),
        ([0.4, 0.6, 0.9], [1, 3, 2], None),
    ],
)
def test_the_area_is_the_mean_accuracy_over_the_budgets(accuracies, costs, expected):
    assert area(accuracies, costs) == (None if expected is None else pytest.approx(expected))


def test_the_area_is_what_many_budgets_give():
    # A straight line between exits, asked at 100,000 budgets.
    budgets = torch.linspace(2, 10, 100_001, dtype=torch.float64)
    accuracies = torch.where(budgets < 4, 0.1 + 0.15 * (budgets - 2), 0.4 + 0.05 * (budgets - 4))
    assert area([0.1, 0.4, 0.7], [2, 4, 10]) == pytest.approx(float(accuracies.mean()), abs=1e-5)


def test_the_table_has_accuracy_cost_mean_and_areas(tmp_path):
    assert table_of(by_hand(tmp_path / "run", costs=COSTS)) == [
        ["", "Exit 1", "Exit 2", "Exit 3", "Mean over exits", "Area over FLOPs", "Area over ms"],
        ["Accuracy", "40.0 %", "60.0 %", "90.0 %", "63.3 %", "70.0 %", "62.5 %"],
        ["Milliseconds", "1.00", "2.00", "3.00", "", "", ""],
        ["MFLOPs", "10.0", "20.0", "60.0", "", "", ""],
    ]


def test_the_headline_has_the_mean_over_exits_and_the_area(tmp_path):
    top = headline_text(by_hand(tmp_path / "run", costs=COSTS))
    assert "Mean over exits63.3 %3 exits, 40.0 to 90.0 %" in top
    assert "Area over FLOPs70.0 %mean accuracy over budgets" in top
    without = make_run(tmp_path / "plain", SMALL).path
    assert "over exits" not in headline_text(without)
    # Eight tiles stand in rows of four.
    assert ("dl", "class", "tiles eight") in shown(headline(history_of(tmp_path / "run"))).attributes
    assert ("dl", "class", "tiles") in shown(headline(history_of(without))).attributes


def test_the_figure_has_a_panel_for_exits_milliseconds_and_flops(tmp_path):
    exits = exits_of(by_hand(tmp_path / "run", costs=COSTS))
    panels = panels_of({0: exits}, "test accuracy")
    assert [axis(panel, "x")["title"] for panel in panels] == [
        "Exit",
        "Milliseconds for one example",
        "MFLOPs for one example",
    ]
    heights = [pytest.approx(value) for value in (40, 60, 90)]
    assert [lines(panel)["run 0"] for panel in panels] == [
        list(zip(costs, heights, strict=True)) for costs in ([1, 2, 3], [1, 2, 3], [10, 20, 60])
    ]
    for panel in panels:
        assert axis(panel, "y")["title"] == "Test accuracy (%)"
        assert axis(panel, "y")["scale"]["domain"] == [0, 101]


def test_costs_of_different_magnitude_have_a_logarithmic_axis(tmp_path):
    small, large = (
        exits_of(by_hand(tmp_path / name, costs={"flops": flops}))
        for name, flops in (("small", [1e6, 2e6, 3e6]), ("large", [1e9, 2e9, 3e9]))
    )
    assert axis(panels_of({0: small, 1: large})[1], "x")["scale"]["type"] == "log"
    assert axis(panels_of({0: small})[1], "x")["scale"] == {"zero": True}


def test_without_costs_there_is_one_panel_and_no_area(tmp_path):
    path = by_hand(tmp_path / "run")
    assert len(panels_of({0: exits_of(path)})) == 1
    assert table_of(path) == [
        ["", "Exit 1", "Exit 2", "Exit 3", "Mean over exits"],
        ["Accuracy", "40.0 %", "60.0 %", "90.0 %", "63.3 %"],
    ]
    text = section_text(path)
    assert "What an answer from each exit costs is not known." in text
    assert f"Area over FLOPs{UNKNOWN}cost of exits not known" in headline_text(path)
    assert "Area:" not in text


def test_a_cost_that_was_not_measured_has_no_panel(tmp_path):
    path = by_hand(tmp_path / "run", costs={"flops": [10e6, 20e6, 60e6], "milliseconds": None})
    assert len(panels_of({0: exits_of(path)})) == 2
    assert table_of(path)[1][-3:] == ["63.3 %", "70.0 %", UNKNOWN]
    assert "Milliseconds measured" not in section_text(path)


def test_times_that_do_not_grow_are_shown_and_have_no_area(tmp_path):
    path = by_hand(tmp_path / "run", costs={**COSTS, "milliseconds": [1.0, 2.0, 1.5]})
    assert len(panels_of({0: exits_of(path)})) == 3
    assert table_of(path)[1][-2:] == ["70.0 %", UNKNOWN]


def test_the_caption_says_what_was_measured_where(tmp_path):
    one = by_hand(tmp_path / "one", costs=COSTS)
    assert "On test examples, after round 3. Milliseconds measured on: device cpu, num threads 2." in section_text(one)
    other = by_hand(tmp_path / "other", GROWING[:2], costs={**COSTS, "machine": {"device": "<cuda>"}})
    text = section_text(one, other)
    assert "after the last evaluated round of each run" in text
    assert "Milliseconds measured on: one: device cpu, num threads 2; other: device <cuda>." in text


def test_lines_over_rounds_are_named_and_grow_stronger_with_depth(tmp_path):
    chart = exits_by_round(exits_of(by_hand(tmp_path / "run")), "test accuracy")
    assert lines(chart) == {
        f"exit {number}": [(round, pytest.approx(height)) for round, height in enumerate(heights, start=1)]
        for number, heights in enumerate(([20, 30, 40], [30, 50, 60], [40, 70, 90]), start=1)
    }
    strengths = opacities(chart)
    assert strengths == sorted(set(strengths))
    assert strengths[-1] == 1
    assert names_in(chart) == [
        ("exit 1", pytest.approx(40)),
        ("exit 2", pytest.approx(60)),
        ("exit 3", pytest.approx(90)),
    ]


def test_rounds_without_evaluation_are_left_out(tmp_path):
    shape = dataclasses.replace(WITH_EXITS, num_rounds=5, num_finished=5, evaluate_every=2)
    assert list(exits_of(make_run(tmp_path / "run", shape).path).by_round) == [2, 4]


@pytest.mark.parametrize("num_exits", [1, MAX_LABELS, MAX_LABELS + 1, 48])
def test_any_number_of_exits_is_drawn(tmp_path, num_exits):
    path = by_hand(tmp_path / "run", [[0.9 + 0.001 * place for place in range(num_exits)]] * 2)
    names = [name for name, _ in names_in(exits_by_round(exits_of(path), ""))]
    assert len(names) <= MAX_LABELS
    assert names[-1] == f"exit {num_exits}"
    assert f"{num_exits} exit{'s' if num_exits > 1 else ''}, 90.0 to" in headline_text(path)
    assert len(table_of(path)[1]) == num_exits + 2


@pytest.mark.parametrize(
    "heights",
    [[5.0], [0.0, 0.0, 0.0], [9.9, 10.0, 10.0], [1.0, 1.5, 1.2, 8.0, 8.9], [3.0, 2.0, 1.0], [2.0, 3.0, 4.0, 4.1, 4.2]],
)
def test_labels_keep_apart_in_order_and_inside(heights):
    places = spread(heights, 1.0, 0.0, 10.0)
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    ordered = [places[place] for place in order]
    assert all(after - before > 1 - 1e-9 for before, after in pairwise(ordered))
    assert ordered[0] >= 0
    assert ordered[-1] <= 10


def test_labels_with_room_stay_where_they_want_to_be():
    assert spread([7.0, 1.0, 4.0], 1.0, 0.0, 10.0) == [7.0, 1.0, 4.0]
    assert spread([5.0, 5.0], 1.0, 0.0, 10.0) == [4.5, 5.5]


def test_tiers_have_their_clients_and_their_bytes(tmp_path):
    # Six clients in turn: 0, 2 and 4 run one block, 1, 3 and 5 run three.
    path = send(
        by_hand(tmp_path / "run", tiers=[1, 3]),
        Transfer(1, 0, "down", 100, {"a": 90}),
        Transfer(1, 1, "down", 300, {"a": 290}),
        Transfer(1, 0, "up", 50, {"a": 40}),
        Transfer(2, 2, "down", 120, {"a": 110}),
        Transfer(2, 0, "down", 140, {"a": 130}),
    )
    shallow, deep = exits_of(path).tiers
    assert (shallow.depth, shallow.num_clients, shallow.downlink_bytes, shallow.uplink_bytes) == (1, 3, 120, 50)
    assert (deep.depth, deep.num_clients, deep.downlink_bytes, deep.uplink_bytes) == (3, 3, 300, None)
    exits = section([history_of(path)])
    assert exits is not None
    (tiers,) = exits.tiers
    assert tiers.table is not None
    assert cells(tiers.table)[1:] == [
        ["1", "3", "50.0 %", "120 B", "50 B"],
        ["3", "3", "50.0 %", "300 B", UNKNOWN],
    ]


def test_shuffled_tiers_follow_the_seed_of_the_run(tmp_path):
    # As `ExitSettings` says: as in turn, after a shuffle of the clients by stream(seed, "tiers").
    order = torch.randperm(6, generator=stream(WITH_EXITS.seed, "tiers")).tolist()
    assert set(order[::2]) != {0, 2, 4}, "a seed that shuffles nothing shows nothing"
    path = by_hand(tmp_path / "run", tiers=[1, 3], assignment="shuffle")
    send(path, *(Transfer(1, client, "down", 10**client, {}) for client in range(6)))
    shallow, deep = exits_of(path).tiers
    assert shallow.downlink_bytes == pytest.approx(sum(10**client for client in order[::2]) / 3)
    assert deep.downlink_bytes == pytest.approx(sum(10**client for client in order[1::2]) / 3)


def test_tiers_of_a_file_are_read_and_a_lost_file_is_reported(tmp_path):
    tiers = tmp_path / "tiers.json"
    tiers.write_text(json.dumps({str(client): 2 if client else 1 for client in range(6)}))
    path = by_hand(tmp_path / "run", tiers_file=str(tiers))
    assert [(tier.depth, tier.num_clients) for tier in exits_of(path).tiers] == [(1, 1), (2, 5)]
    tiers.unlink()
    assert exits_of(path).tiers == ()
    assert "The depths of the clients are not known: `exits.tiers_file`" in section_text(path)


def test_without_the_clients_of_a_run_its_tiers_are_not_known(tmp_path):
    path = by_hand(tmp_path / "run", tiers=[1, 3])
    (path / PARTITION).unlink()
    assert "The depths of the clients are not known: the run does not tell its clients and its seed." in section_text(
        path
    )


def test_runs_of_one_depth_have_no_tiers(tmp_path):
    path = by_hand(tmp_path / "run", train="sum")
    assert exits_of(path).tiers == ()
    assert "Tiers" not in section_text(path)


def test_several_runs_share_the_figure_and_the_table(tmp_path):
    # `plain` comes first: the others keep the colours that they have in the curves.
    without = make_run(tmp_path / "plain", SMALL).path
    paths = [by_hand(tmp_path / "three", costs=COSTS, tiers=[1, 3]), by_hand(tmp_path / "two <b>", [[0.5, 0.7]])]
    page, rows = page_of(without, *paths), table_of(without, *paths)
    assert rows[0][0] == "Run"
    assert rows[1:] == [
        ["three", "40.0 %", "60.0 %", "90.0 %", "63.3 %", "70.0 %", "62.5 %"],
        ["two <b>", "50.0 %", "70.0 %", UNKNOWN, "60.0 %", UNKNOWN, UNKNOWN],
    ]
    for expected in ("Accuracy of each exit against rounds: two <b>", "Tiers of three", "Cost not known: two <b>."):
        assert expected in page.text
    assert "Accuracy of each exit against rounds: plain" not in page.text
    assert re.findall(r"<h2>Exits</h2>\s*<ul.*?</ul>", page.content, flags=re.DOTALL)[0].count("<li>") == 2
    top = plain(page.text.split("What differs")[0])
    assert "Mean over exits" in top
    assert "63.3 %" in top
    by_exit, by_time, _ = panels_of({1: exits_of(paths[0]), 2: exits_of(paths[1])})
    drawn = next(layer for layer in by_exit["layer"] if layer["mark"] == "line")
    assert drawn["encoding"]["color"]["scale"]["range"] == ["var(--series-2)", "var(--series-3)"]
    assert list(lines(by_time)) == ["run 1"]  # the only one whose cost is known


def test_runs_without_exits_have_no_section(tmp_path):
    without = make_run(tmp_path / "plain", SMALL).path
    begun = make_run(tmp_path / "begun", dataclasses.replace(WITH_EXITS, num_finished=0, exits={"tiers": [1, 3]})).path
    assert section_text(without) == section_text(begun) == ""
    text = text_of(without, begun)
    assert "Accuracy against exit" not in text
    assert "over exits" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"flops": [1, 2]}', "`flops` is not 3 positive numbers, one for each exit"),
        ('{"flops": [1, 2, null]}', "`flops` is not 3 positive numbers"),
        ('{"flops": [1, 2, true]}', "`flops` is not 3 positive numbers"),
        ('{"flops": 3}', "`flops` is not 3 positive numbers"),
        ('{"flops": [0, 1, 2]}', "`flops` is not 3 positive numbers"),
        ('{"flops": [1, 2, 3], "milliseconds": [1, 2, Infinity]}', "`milliseconds` is not 3 positive numbers"),
        ('{"flops": [1, 2, 3], "milliseconds": [1, 2, 3, 4]}', "`milliseconds` is not 3 positive numbers"),
        ('{"flops": [1, 2, 3], "machine": "mine"}', "`machine` is not an object"),
        ("[1, 2, 3]", "expected an object"),
        ("{", "not valid JSON"),
    ],
)
def test_costs_that_do_not_fit_are_named(tmp_path, content, message):
    path = by_hand(tmp_path / "run")
    (path / EXITS).write_text(content)
    with pytest.raises(RunError, match=message) as error:
        read_histories([path])
    assert "exits.json" in str(error.value)


def test_costs_of_unequal_length_are_named_where_the_number_of_exits_is_not_known(tmp_path):
    path = tmp_path / EXITS
    path.write_text('{"flops": [1, 2, 3], "milliseconds": [1, 2]}')
    with pytest.raises(RunError, match="`milliseconds` is not 3 positive numbers"):
        read_compute(path, 0)


@pytest.mark.parametrize("accuracies", [[0.1, 0.2], [], [0.1, 0.2, None], [0.1, 0.2, 1.5], [0.1, 0.2, "x"], 0.5, None])
def test_accuracies_that_do_not_fit_are_named(tmp_path, accuracies):
    path = by_hand(tmp_path / "run")
    run = RunDirectory.open(path)
    first, second, third = run.rounds.read()
    rewrite(run, [first, {**second, "measures_by_exit": {"accuracy": accuracies}}, third])
    message = r"line 2: `measures_by_exit` is .*, expected as many fractions by `accuracy` in every"
    with pytest.raises(RunError, match=message):
        read_histories([path])


@pytest.mark.parametrize(
    "accuracies", [0.5, [], "x", {"accuracy": []}, {"accuracy": "x"}, {"loss_nats": [1.0, 1.0, 1.0]}]
)
def test_a_last_round_that_does_not_fit_is_named(tmp_path, accuracies):
    path = by_hand(tmp_path / "run")
    run = RunDirectory.open(path)
    *first, last = run.rounds.read()
    rewrite(run, [*first, {**last, "measures_by_exit": accuracies}])
    with pytest.raises(RunError, match=r"`measures_by_exit` is .*, expected as many fractions"):
        read_histories([path])


def test_an_evaluated_round_without_its_exits_is_named(tmp_path):
    path = by_hand(tmp_path / "run")
    run = RunDirectory.open(path)
    first, second, third = run.rounds.read()
    del second["measures_by_exit"]
    rewrite(run, [first, second, third])
    with pytest.raises(RunError, match="line 2: `measures_by_exit` is None"):
        read_histories([path])


def test_a_section_that_cannot_be_right_is_refused(tmp_path):
    path = by_hand(tmp_path / "run", tiers=[1, 3])
    config = (path / CONFIG).read_text()
    (path / CONFIG).write_text(re.sub(r"tiers = \[.*?\]", "tiers = [0]", config, flags=re.DOTALL))
    with pytest.raises(RunError, match=r"`\[exits\]` is not valid"):
        page_of(path)


def test_no_fixed_colour_remains_in_the_figures_and_each_says_what_it_shows(tmp_path):
    exits = section([history_of(by_hand(tmp_path / "run", costs=COSTS))])
    assert exits is not None
    drawings = svgs(shown(exits).content)
    assert [re.findall('aria-label="(.*?)"', svg)[0] for svg in drawings] == [
        "Accuracy against exit, milliseconds and FLOPs, in the last evaluated round",
        "Accuracy of each exit by round",
    ]
    assert set[str]().union(*map(fixed_colours, drawings)) == set()


def test_the_table_at_the_end_of_a_run_has_its_exits(tmp_path, capsys):
    def shown(path: Path, summary: dict[str, object]) -> list[str]:
        full = {**json.loads((path / "summary.json").read_text()), **summary}
        conclude(Result(path, None, {}, Ledger.read(path / "ledger.jsonl"), full), ACCURACY, quiet=False)
        return [re.sub(r"[│\s]+", " ", line).strip() for line in capsys.readouterr().out.splitlines()]

    with_exits = make_run(tmp_path / "run", WITH_EXITS).path
    lines = shown(with_exits, {"accuracy_by_exit": [0.621, 0.8034, 0.9], "mean_exit_accuracy": 0.77480})
    assert "accuracy by exit 62.1, 80.3, 90.0 %" in lines
    assert "mean over exits 77.5 %" in lines
    plain = make_run(tmp_path / "plain", SMALL).path
    assert not [line for line in shown(plain, {}) if "exit" in line]


def test_clients_that_no_round_asks_have_a_place_in_the_order_and_none_in_the_tiers(tmp_path):
    # Seven clients in turn over depths 1 and 3, of which 6 and 2 are held out: 0 and 4 are left of the first tier.
    path = by_hand(tmp_path / "run", tiers=[1, 3])
    content = json.loads((path / PARTITION).read_text())
    content["held_out"] = {"6": [1] * 10, "2": content["clients"].pop("2")}
    (path / PARTITION).write_text(json.dumps(content))
    assert [(tier.depth, tier.num_clients) for tier in exits_of(path).tiers] == [(1, 2), (3, 3)]
