"""The section "Privacy" of the page, and what the rest of the page says about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report.pages import Page, cells, page_of, shown, text_of
from tests.report.synthetic import PROMISE, SMALL, Shape, history_of, make_run, rewrite

from fedelta.errors import RunError
from fedelta.record.numbers import UNKNOWN
from fedelta.record.promise import Promise
from fedelta.record.rundir import RunDirectory
from fedelta.report import plots
from fedelta.report.headline import Tile, headline
from fedelta.report.privacy_section import section

STOPPED = "The privacy budget is spent: the run ended after round 2 of 3."


def private(path: Path, shape: Shape = SMALL, **changes: object) -> Path:
    """A run with a promise."""
    return make_run(path, replace(shape, promise=replace(PROMISE, **changes))).path


def alone(path: Path) -> Page:
    """The section about one run."""
    content = section([history_of(path)])
    assert content is not None
    return shown(content)


def test_a_run_that_protects_nobody_has_no_section(small: Path):
    assert section([history_of(small)]) is None
    assert "psilon" not in text_of(small)


def test_the_section_says_what_is_promised_covered_and_not_covered(tmp_path: Path):
    # Invented: 3.25 * sqrt(3 / 30) / 0.8075 = 1.27274 after round 3, and 1.22 times as much by RDP.
    text = alone(private(tmp_path / "run")).plain
    for expected in (
        "with all of its data (added or removed), with epsilon 1.273 at delta 0.001 (1.553 by RDP).",
        "The server sees every update and is trusted to clip it and to add the noise.",
        "The noise comes from the seed of the run, for tests and simulations: whoever knows the seed can remove it",
        "Noise multiplier 0.8075, clipping norm 1.00. No round may exceed epsilon 5.",
        "Covered: the parameters of every round",
        "Not covered: the run directory",
        "Epsilon against rounds",
        "Accuracy against epsilon",
    ):
        assert expected in text, expected
    assert "Clipping norm against rounds" not in text


def test_an_adaptive_clipping_norm_has_a_figure(tmp_path: Path):
    text = alone(private(tmp_path / "run", clipping="adaptive")).plain
    # Invented: 0.4 + 0.6 * 0.93^3 = 0.8826.
    assert "clipping norm 0.883 in the last round" in text
    assert "Clipping norm against rounds" in text


def test_noise_without_a_guarantee_has_no_epsilon_anywhere_on_the_page(tmp_path: Path):
    path = private(tmp_path / "run", unit="example", mechanism="fedpeft-text")
    text = text_of(path)
    assert text.count('No guarantee: "fedpeft-text" reproduces the noise') == 2  # at the top, and in the section
    assert Tile("Epsilon", "none", "no guarantee") in headline(history_of(path)).tiles
    assert "against epsilon" not in text


def test_the_top_has_epsilon_and_noise_and_says_when_the_budget_ended_the_run(tmp_path: Path):
    shape = replace(SMALL, promise=PROMISE, num_finished=2, stopped=STOPPED)
    path = make_run(tmp_path / "run", shape).path
    # 3.25 * sqrt(2 / 30) / 0.8075 = 1.03919
    assert headline(history_of(path)).tiles[1:3] == [
        Tile("Epsilon", "1.04", "for clients, delta 0.001"),
        Tile("Noise multiplier", "0.8075", "from the seed: simulation only"),
    ]
    text = text_of(path)
    assert text.count(STOPPED) == 2
    assert "Unfinished" not in text


def test_runs_side_by_side_are_compared_by_epsilon(tmp_path: Path, small: Path):
    paths = [
        private(tmp_path / "kept"),
        private(tmp_path / "reproduced", unit="example", mechanism="fedpeft-code"),
        private(tmp_path / "local", unit="local", randomness="secure", accountant="rdp"),
    ]
    runs = [history_of(path) for path in [small, *paths]]
    content = section(runs)
    assert content is not None
    assert content.runs is not None
    assert [row[:3] for row in cells(content.runs)] == [
        ["Run", "Protected", "Epsilon"],
        ["kept", "clients", "1.273"],
        ["reproduced", "examples", "no guarantee"],
        ["local", "clients, from the server too", "1.553"],
    ]
    assert [line.name for line in content.lines] == ["kept", "local"]
    assert content.warning == "reproduced: no guarantee, whatever epsilon was asked for."
    table = page_of(small, *paths).tables[0]
    place = table[0].index("Epsilon")
    assert [row[place] for row in table[1:]] == [
        UNKNOWN,
        "1.273 (client, delta 0.001)",
        "no guarantee",
        "1.553 (local, delta 0.001)",
    ]


def test_a_private_run_before_its_first_round_has_a_section_without_figures(tmp_path: Path):
    content = section([history_of(private(tmp_path / "run", replace(SMALL, num_finished=0)))])
    assert content is not None
    assert content.pictures == ()
    assert "epsilon 0 at delta" in content.texts[0]


@pytest.mark.parametrize("change", [{"epsilon": "2"}, {"epsilon_rdp": -1}, {"clipping_norm": None}], ids=str)
def test_a_record_that_no_private_run_wrote_is_refused(tmp_path: Path, change: dict[str, object]):
    run = RunDirectory(private(tmp_path / "run"))
    first, *others = run.rounds.read()
    rewrite(run, [first | change, *others])
    with pytest.raises(RunError, match=r"line 1: `epsilon`, `epsilon_rdp` or `clipping_norm` are not as"):
        history_of(run.path)


def test_an_epsilon_that_was_changed_in_the_summary_is_told(tmp_path: Path):
    path = private(tmp_path / "run")
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps(summary | {"epsilon": 0.1}))
    assert any("`epsilon` is 0.1 in `summary.json`" in problem for problem in history_of(path).misfits)


def test_every_unit_has_its_words(tmp_path: Path):
    for unit, words in (("example", "for examples"), ("client", "for clients"), ("local", "for clients, local")):
        promise: Promise = replace(PROMISE, unit=unit)
        text = text_of(make_run(tmp_path / unit, replace(SMALL, promise=promise)).path)
        assert f"{words}, delta 0.001" in text


def test_cohorts_that_differ_in_size_are_counted_as_their_mean(tmp_path: Path):
    run = history_of(private(tmp_path / "run"))
    assert "3 rounds, 2 of 6 clients a round" in headline(run).progress
    strategy = {**run.config["strategy"], "sampling": "poisson"}
    empty = {**run.rounds[0], "cohort": [], "cumulative_bytes": 0}
    run = replace(run, config={**run.config, "strategy": strategy}, rounds=[empty, *run.rounds[1:]])
    assert "3 rounds, about 2 of 6 clients a round" in headline(run).progress
    # Two clients, two directions, four bytes of each scalar.
    assert run.full_round_bytes == 2 * 2 * 4 * run.model["total_parameters"]
    plots.measure_by_traffic([run])
