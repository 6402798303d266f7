from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.report import synthetic
from tests.report.pages import fixed_colours, lines, opacities, rows, shown, svgs, text_of
from tests.report.synthetic import history_of, in_windows, make_run, rewrite

from fedelta.errors import RunError
from fedelta.record.history import read_histories
from fedelta.record.rundir import CONFIG, MODEL, RunDirectory
from fedelta.report.drawing import to_svg
from fedelta.report.layer_plots import discrepancy_by_group, discrepancy_curves, intervals_by_round
from fedelta.report.layer_section import section
from fedelta.report.layers import IntervalChoice, Layers, read_layers
from fedelta.report.plots import measure_by_round
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.fedlama_auto import FedLamaAuto

SMALL = dataclasses.replace(
    synthetic.SMALL, num_rounds=4, num_finished=4, groups=(("a", 6), ("b", 2), ("c", 2))
)  # fmt: skip
EVEN = [1.0, 2.0, 8.0]


def by_hand(
    path: Path,
    strategy: FedLama | FedLamaAuto,
    intervals: Sequence[Sequence[int]],
    discrepancy: Sequence[Sequence[float]] | None = None,
    num_rounds: int | None = None,
) -> Path:
    """A run whose records hold these numbers, one list a round; planned for `num_rounds`, or as many as there are."""
    num_finished = len(intervals)
    shape = dataclasses.replace(SMALL, num_finished=num_finished, num_rounds=num_rounds or num_finished)
    run = make_run(path, in_windows(shape, strategy))
    rewrite(
        run,
        [
            {**record, "interval_rounds": chosen, "unit_discrepancy": values}
            for record, chosen, values in zip(
                run.rounds.read(), intervals, discrepancy or [EVEN] * num_finished, strict=True
            )
        ],
    )
    return path


def layers_of(path: Path) -> Layers:
    layers = read_layers(history_of(path))
    assert layers is not None
    return layers


def choice_of(path: Path) -> IntervalChoice:
    choice = layers_of(path).choice
    assert choice is not None
    return choice


def test_the_heat_map_has_the_interval_that_was_in_force_in_each_round(tmp_path):
    # The record of round 2 holds what rounds 3 and 4 follow; no round follows that of round 4.
    logged = [[1, 1, 1], [1, 2, 1], [1, 2, 1], [2, 1, 2]]
    layers = layers_of(by_hand(tmp_path / "run", FedLama(phi=2), logged))
    assert layers.intervals.tolist() == [[1, 1, 1], [1, 1, 1], [1, 2, 1], [1, 2, 1]]
    heat, *_ = intervals_by_round(layers).spec["hconcat"]
    assert [(row["group"], row["interval"], row["from"], row["to"]) for row in rows(heat)] == [
        ("a", "1", 0.5, 4.5),
        ("b", "1", 0.5, 2.5),
        ("b", "2", 2.5, 4.5),
        ("c", "1", 0.5, 4.5),
    ]
    assert heat["encoding"]["y"]["sort"] == ["a", "b", "c"]


def test_the_legend_names_the_intervals_that_occur(tmp_path):
    logged = [[8, 2, 1]] * 9
    chart = intervals_by_round(layers_of(by_hand(tmp_path / "run", FedLamaAuto(phi=8, share=0.4), logged)))
    # 1/4 is the first divisor's traffic within 40 %: every group begins with 4.
    scale = chart.spec["hconcat"][0]["encoding"]["opacity"]["scale"]
    assert scale["domain"] == ["1", "2", "4", "8"]
    assert scale["range"] == sorted(set(scale["range"]))


@pytest.mark.parametrize(
    ("strategy", "first"),
    [
        (FedLama(phi=4), 1),
        (FedLamaAuto(phi=8, share=0.4), 4),
        (FedLamaAuto(phi=8, share=0.125, num_rounds=48), 8),
        (FedLamaAuto(phi=8, tolerance=0.5), 1),
    ],
)
def test_the_first_window_has_the_interval_that_the_strategy_begins_with(tmp_path, strategy, first):
    assert layers_of(by_hand(tmp_path / "run", strategy, [[1, 1, 1]] * 16)).intervals[0].tolist() == [first] * 3


@pytest.mark.parametrize("num_finished", [1, 4, 6, 11])  # the last window is a short one
@pytest.mark.parametrize("strategy", [FedLama(phi=1), FedLama(phi=4), FedLamaAuto(phi=4, share=0.5)])
def test_averages_of_each_group_add_up_to_the_relative_cost(tmp_path, strategy, num_finished):
    shape = dataclasses.replace(SMALL, num_rounds=11, num_finished=num_finished)
    path = make_run(tmp_path / "run", in_windows(shape, strategy)).path
    layers = layers_of(path)
    averaged = sum(
        size * number for size, number in zip(layers.sizes.values(), layers.num_syncs.tolist(), strict=True)
    )  # fmt: skip
    assert averaged / (10 * num_finished) == pytest.approx(history_of(path).relative_cost)


def test_a_round_that_does_not_count_averages_nothing(tmp_path):
    path = by_hand(tmp_path / "run", FedLama(phi=2), [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 2, 2]])
    run = RunDirectory.open(path)
    records = run.rounds.read()
    rewrite(run, [*records[:2], {**records[2], "num_examples": 0, "synced_fraction": 0.0}, records[3]])
    layers = layers_of(path)
    assert layers.num_syncs.tolist() == [3, 3, 3]  # without the void one `a` would have 4
    assert layers.num_counted == 3


def test_bars_show_averages_and_scalars_of_each_group(tmp_path):
    logged = [[1, 1, 1], [1, 2, 1], [1, 2, 1], [1, 2, 1]]
    _, often, many = intervals_by_round(layers_of(by_hand(tmp_path / "run", FedLama(phi=2), logged))).spec["hconcat"]
    assert [(row["value"], row["most"]) for row in rows(often)] == [(4, 4), (3, 4), (4, 4)]
    assert [(row["value"], row["most"]) for row in rows(many)] == [(24, 24), (6, 8), (8, 8)]


def test_the_crossing_is_the_one_of_the_last_choice_that_rounds_follow(tmp_path):
    # Sizes 6, 2, 2. Amounts 6, 4, 16 of 26: delta 0.231, 0.385, 1; 1 - lambda 0.4, 0.2, 0: crossing at l = 2. Between
    # l = 1 and 2 the lines meet at 0.231 + 0.154 * 0.169 / (0.169 + 0.185) = 0.304.
    logged = [[1, 1, 1], [2, 2, 1], [2, 2, 1], [1, 1, 2]]
    path = by_hand(tmp_path / "run", FedLama(phi=2), logged, [EVEN, EVEN, EVEN, [8.0, 2.0, 1.0]])
    choice = choice_of(path)
    assert choice.round == 2
    chart = discrepancy_curves(choice)
    _, mark, *_ = chart.spec["layer"]
    (dot,) = rows(mark)
    assert (dot["x"], dot["y"]) == pytest.approx((1 + 0.1692 / 0.3538, 30.43), abs=0.1)
    delta, rest = ([height for _, height in line] for line in lines(chart).values())
    assert delta == pytest.approx([0, 600 / 26, 1000 / 26, 100])
    assert rest == pytest.approx([100, 40, 20, 0])
    text = text_of(path)
    assert "The curves cross at l = 2, at 30 %." in text
    assert "Behind the choice after round 2" in text
    assert "2 of 3 groups were given an interval of 2 rounds: those before the crossing, and the one at it." in text
    assert "They have 80.0 % of the parameters and 38.5 % of the discrepancy." in text


def test_without_the_group_at_the_crossing_the_caption_says_so(tmp_path):
    path = by_hand(tmp_path / "run", FedLama(phi=2, crossing="excluded"), [[1, 1, 1], [2, 1, 1], [2, 1, 1], [2, 1, 1]])
    text = text_of(path)
    assert "1 of 3 groups were given an interval of 2 rounds: those before the crossing. They have 60.0 %" in text


def test_a_run_of_one_window_has_the_choice_at_its_end(tmp_path):
    assert choice_of(by_hand(tmp_path / "lama", FedLama(phi=4), [[1, 1, 1], [4, 4, 1]])).round == 2
    # fedlama-auto makes none for rounds that do not come.
    assert layers_of(by_hand(tmp_path / "auto", FedLamaAuto(phi=4, tolerance=1.0), [[1, 1, 1]] * 2)).choice is None


def test_before_the_first_choice_there_are_no_curves(tmp_path):
    path = by_hand(tmp_path / "run", FedLama(phi=4), [[1, 1, 1]] * 3, num_rounds=12)
    assert layers_of(path).choice is None
    text = text_of(path)
    assert "Unit discrepancy of each group" in text
    assert "Behind the choice" not in text


@pytest.mark.parametrize(
    ("strategy", "budget"),
    [
        (FedLamaAuto(phi=4, share=0.5), "50.0 % of the traffic of FedAvg"),
        (FedLamaAuto(phi=4, tolerance=0.25), "at most 25.0 % more discrepancy than with FedAvg"),
    ],
)
def test_a_budget_is_named_instead_of_the_crossing(tmp_path, strategy, budget):
    logged = [[1, 1, 1]] * 3 + [[4, 2, 1]] * 3
    text = text_of(by_hand(tmp_path / "run", strategy, logged))
    assert f"Not chosen by the crossing but by a budget, {budget}." in text
    assert "by number of groups: 1 for 1, 2 for 1, 4 for 1." in text


def test_discrepancies_have_a_range_and_a_last_value(tmp_path):
    values = [[0.0, 4.0, 3.0], [0.5, 4.0, 5.0], [0.25, 8.0, 2.0]]
    path = by_hand(tmp_path / "run", FedLama(phi=4), [[1, 1, 1]] * 3, values)
    groups = rows(discrepancy_by_group(layers_of(path)).spec)
    assert [(row["low"], row["high"]) for row in groups] == [(0.25, 0.5), (4, 8), (2, 5)]  # zero is "not known yet"
    assert [(row["last"], row["is_zero"]) for row in groups] == [(0.25, False), (8, False), (2, False)]
    assert "Hollow" not in text_of(path)


def test_zero_has_a_hollow_mark_left_of_a_logarithmic_axis(tmp_path):
    path = by_hand(tmp_path / "run", FedLama(phi=4), [[1, 1, 1]] * 2, [[0.5, 0.0, 3.0], [0.25, 0.0, 0.0]])
    chart = discrepancy_by_group(layers_of(path))
    assert chart.spec["layer"][1]["encoding"]["x"]["scale"]["type"] == "log"
    assert [(row["at"], row["is_zero"]) for row in rows(chart.spec)] == [(0.25, False), (0.125, True), (0.125, True)]
    assert "Hollow: zero." in text_of(path)
    svg = to_svg(chart, "x", "")
    assert svg.count('stroke="var(--series-1)" stroke-width="1.4"') == 3  # of which one is filled
    assert svg.count('fill="var(--series-1)"') == 1
    assert "nan" not in svg.lower()


def test_clients_that_do_not_differ_have_no_discrepancy_to_draw(tmp_path):
    path = by_hand(tmp_path / "run", FedLama(phi=2), [[1, 1, 1]] * 3, [[0.0] * 3] * 3)
    assert choice_of(path).discrepancy_share == 0
    text = text_of(path)
    assert "Clients have not differed in any group so far." in text
    assert "Unit discrepancy of each group" not in text


def test_full_syncs_and_traffic_are_shown(tmp_path):
    shape = dataclasses.replace(SMALL, num_rounds=8, num_finished=7)
    path = make_run(tmp_path / "run", in_windows(shape, FedLama(phi=4))).path
    history, text = history_of(path), text_of(path)
    # All groups come up in window 1. With all of them each upload weighs 2 x 10 bytes and 612 of headers.
    assert history.full_syncs == {1, 2, 3, 4}
    assert "4 of 7 rounds were full syncs, which average every group." in text
    everything, sent = 7 * 2 * 632, history.ledger.uplink_bytes
    assert everything > sent
    assert f"if each were as long as the longest {everything / 2**20:.5f} MiB" in text
    assert f"so {100 * (1 - sent / everything):.1f} % is saved." in text
    assert f"Relative cost: {100 * history.relative_cost:.1f} % of the scalars" in text
    assert f"relative cost {100 * history.relative_cost:.1f} %" in text.split("Results")[0]


def test_accuracy_is_strong_at_full_syncs_and_faint_between(tmp_path):
    shape = dataclasses.replace(SMALL, num_rounds=8, num_finished=8)
    path = make_run(tmp_path / "run", in_windows(shape, FedLama(phi=4))).path
    chart = measure_by_round([history_of(path)])
    everything, synced = lines(chart).values()
    assert [round for round, _ in everything] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [round for round, _ in synced] == [1, 2, 3, 4, 8]
    faint, strong = opacities(chart)
    assert faint < strong
    assert "Strong: rounds in which all groups were averaged" in text_of(path)


def test_runs_whose_groups_all_travel_have_no_section(tmp_path):
    plain = make_run(tmp_path / "plain", SMALL).path
    old = make_run(tmp_path / "old", SMALL)
    rewrite(old, [{key: record[key] for key in record if key != "synced_fraction"} for record in old.rounds.read()])
    old.path.joinpath(MODEL).write_text('{"tuned_parameters": 10, "total_parameters": 1000}')
    text = text_of(plain, old.path)
    assert history_of(old.path).relative_cost is None
    for absent in ("Layers", "Strong: rounds", "elative cost"):
        assert absent not in text
    assert list(lines(measure_by_round([history_of(old.path)]))) == ["old"]


def test_without_names_of_groups_there_is_no_section(tmp_path):
    path = by_hand(tmp_path / "run", FedLama(phi=2), [[1, 1, 1], [1, 2, 1], [1, 2, 1]], num_rounds=4)
    (path / MODEL).unlink()
    assert read_layers(history_of(path)) is None
    assert "Layers" not in text_of(path)


def test_each_run_with_intervals_has_a_section_of_its_own(tmp_path):
    shape = in_windows(dataclasses.replace(SMALL, num_finished=3), FedLama(phi=2))
    paths = [make_run(tmp_path / name, shape).path for name in ("one", "two")]
    text = text_of(make_run(tmp_path / "plain", SMALL).path, *paths)
    assert [name for name in ("one", "two", "plain") if f"Layers of {name}" in text] == ["one", "two"]
    assert "Relative cost" in text.split("Results")[0]


MANY = tuple((f"layers.{index}", 3 + index % 5) for index in range(100))


@pytest.mark.parametrize(
    ("strategy", "groups", "num_finished"),
    [
        pytest.param(FedLama(phi=4), (("<b>only</b>", 6),), 1, id="one group, one round"),
        pytest.param(FedLamaAuto(phi=6, share=0.3), (("<b>only</b>", 6),), 12, id="one group, intervals by a budget"),
        pytest.param(FedLama(phi=4), MANY, 12, id="many groups"),
        pytest.param(FedLamaAuto(phi=6, share=0.3), MANY, 1, id="many groups, one round"),
    ],
)
def test_runs_of_any_shape_are_drawn(tmp_path, strategy, groups, num_finished):
    shape = dataclasses.replace(SMALL, num_rounds=12, num_finished=num_finished, groups=groups)
    path = make_run(tmp_path / "run", in_windows(shape, strategy)).path
    layers = section(history_of(path), "g", titled=False)
    assert layers is not None
    page = shown(layers)
    assert len(page.content) < 2**19
    assert ("<b>only</b>" in page.text) is (len(groups) == 1)


def test_zero_rounds_have_no_section(tmp_path):
    path = make_run(tmp_path / "run", in_windows(dataclasses.replace(SMALL, num_finished=0), FedLama())).path
    assert "Layers" not in text_of(path)


def test_phi_of_one_chooses_nothing(tmp_path):
    text = text_of(by_hand(tmp_path / "run", FedLama(phi=1), [[1, 1, 1]] * 3))
    assert "With phi = 1 every group travels in every round." in text
    assert "Strong: rounds" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interval_rounds": [1, 1]}, "line 2: `interval_rounds` is not 3 numbers, one for each of the `groups`"),
        ({"unit_discrepancy": [1.0, None, 1.0]}, "line 2: `unit_discrepancy` is not 3 numbers"),
        ({"unit_discrepancy": 4}, "line 2: `unit_discrepancy` is not 3 numbers"),
    ],
)
def test_ragged_records_are_named(tmp_path, change, message):
    path = by_hand(tmp_path / "run", FedLama(phi=2), [[1, 1, 1]] * 3)
    run = RunDirectory.open(path)
    first, second, third = run.rounds.read()
    rewrite(run, [first, {**second, **change}, third])
    with pytest.raises(RunError, match=message):
        read_histories([path])


def test_a_record_without_intervals_among_others_is_named(tmp_path):
    path = by_hand(tmp_path / "run", FedLama(phi=2), [[1, 1, 1]] * 2)
    run = RunDirectory.open(path)
    first, second = run.rounds.read()
    del second["unit_discrepancy"]
    rewrite(run, [first, second])
    with pytest.raises(RunError, match="line 2: lacks unit_discrepancy"):
        read_histories([path])


def test_intervals_of_a_strategy_without_any_are_refused(tmp_path):
    path = by_hand(tmp_path / "run", FedLama(phi=2), [[1, 1, 1]] * 2)
    config = (path / CONFIG).read_text()
    (path / CONFIG).write_text(config.replace('name = "fedlama"', 'name = "fedavg"'))
    with pytest.raises(RunError, match=r"`\[strategy\]` is not the one that wrote its rounds"):
        read_layers(history_of(path))


def test_no_fixed_colour_remains_in_the_figures(tmp_path):
    path = by_hand(tmp_path / "run", FedLama(phi=2), [[1, 1, 1], [2, 2, 1], [2, 2, 1]])
    layers = section(history_of(path), "g", titled=False)
    assert layers is not None
    drawings = svgs(shown(layers).content)
    assert len(drawings) == 3
    assert set[str]().union(*map(fixed_colours, drawings)) == set()
