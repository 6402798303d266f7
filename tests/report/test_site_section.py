from __future__ import annotations

from pathlib import Path

import pytest
from tests.report.deployed import CUT, GOOD, SLOW, make_deployed
from tests.report.pages import cells, page_of, text_of
from tests.report.synthetic import SMALL, history_of, make_run

from fedelta.record.numbers import UNKNOWN
from fedelta.report.site_plot import attendance
from fedelta.report.site_section import section


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    states = {"berlin": GOOD, "hamburg": CUT, "kiel": SLOW}
    own = {"berlin": 0.91, "hamburg": 0.84}
    return make_deployed(tmp_path_factory.mktemp("runs") / "cut", states, min_sites=3, own=own).path


def test_a_simulation_has_no_section_on_sites(tmp_path: Path):
    assert section(history_of(make_run(tmp_path / "run", SMALL).path), "s", titled=False) is None


def test_the_top_of_the_page_says_which_rounds_had_too_few_sites(cut: Path):
    page = page_of(cut)
    warning = "15 of 30 rounds had fewer than 3 sites: 'hamburg' away in 12; 'kiel' busy in 1, late in 1, refused in 2."
    assert page.texts["p"][0] == warning
    assert page.plain.count(warning) == 1


def test_each_run_of_several_says_it_in_its_own_section(cut: Path, tmp_path: Path):
    good = make_deployed(tmp_path / "good", {"berlin": GOOD, "hamburg": GOOD})
    text = text_of(good.path, cut)
    assert text.count("15 of 30 rounds had fewer than 3 sites") == 1
    assert "30 (some on too few sites)" in text


def test_the_section_tells_what_each_site_did(cut: Path):
    shown = section(history_of(cut), "s", titled=False)
    assert shown is not None
    assert shown.text.startswith(
        "berlin was there in all 30 rounds. hamburg was there in 18 of 30 rounds, away in 12. "
        "kiel was there in 26 of 30 rounds, busy in 1, late in 1, refused in 2."
    )
    assert cells(shown.states)[1:] == [
        ["berlin", "took part", "round 1, 2026-11-28 13:01 UTC", "30"],
        ["hamburg", "took part", "round 22, 2026-11-28 13:22 UTC", "18"],
        ["kiel", "refused: its model is another one: resnet-micro", "round 29, 2026-11-28 13:29 UTC", "26"],
    ]


def test_data_bytes_and_own_measures_stand_beside_each_other(cut: Path):
    shown = section(history_of(cut), "s", titled=False)
    assert shown is not None
    header, berlin, _, kiel = cells(shown.amounts)
    assert header[:5] == ["Site", "Clients", "Examples", "MiB down", "MiB up"]
    # 4 clients with 20 examples each, and 30 messages of 60,000 and 61,000 bytes
    assert berlin == ["berlin", "4", "80", "1.72", "1.75", "91.0", "0.0900", "90"]
    assert kiel[-3:] == [UNKNOWN] * 3


def test_the_strip_has_a_row_for_each_site_and_the_states_that_occurred(cut: Path):
    encoding = attendance(history_of(cut)).spec["encoding"]
    assert encoding["y"]["sort"] == ["berlin", "hamburg", "kiel"]
    assert encoding["color"]["scale"]["domain"] == ["took part", "late", "busy", "away", "refused"]
