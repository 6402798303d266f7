from __future__ import annotations

from pathlib import Path

import pytest
from tests.report.deployed import CUT, GOOD, make_deployed
from tests.report.synthetic import SMALL, history_of, make_run, rewrite

from fedelta.errors import RunError
from fedelta.federation.records import SiteState
from fedelta.record.files import read_json
from fedelta.record.sites import own_measures, summary_of_sites, too_few_sites, totals_of_sites

AWAY: list[SiteState] = ["took part", "away", "took part"]


def test_a_summary_of_a_run_on_too_few_sites_says_so_first(tmp_path: Path):
    run = make_deployed(tmp_path / "run", {"berlin": GOOD, "hamburg": CUT})
    summary = read_json(run.summary)
    assert next(iter(summary)) == "too_few_sites"
    assert summary["too_few_sites"] == "12 of 30 rounds had fewer than 2 sites: 'hamburg' away in 12."


def test_a_summary_of_a_run_on_enough_sites_has_no_such_line(tmp_path: Path):
    run = make_deployed(tmp_path / "run", {"berlin": GOOD, "hamburg": CUT}, min_sites=1)
    summary = read_json(run.summary)
    assert "too_few_sites" not in summary
    assert summary["sites"]["hamburg"]["rounds"] == {"took part": 18, "away": 12}


def test_a_site_without_clients_in_the_cohort_counts_as_there():
    entries = [{"site": "kiel", "state": "took part"}, {"site": "bonn", "state": "not asked"}]
    assert too_few_sites([{"sites": entries}], 2) == ""


def test_rounds_in_which_a_site_is_unknown_have_too_few_sites():
    assert too_few_sites([{"sites": [{"site": "kiel", "state": "took part"}]}], 2) == (
        "1 of 1 rounds had fewer than 2 sites."
    )


def test_a_simulation_has_nothing_to_say_about_sites(tmp_path: Path):
    run = make_run(tmp_path / "run", SMALL)
    assert totals_of_sites(run.rounds.read()) == []
    assert summary_of_sites(run.rounds.read()) == {}
    assert "sites" not in read_json(run.summary)


def test_totals_of_a_site_are_over_all_rounds(tmp_path: Path):
    run = make_deployed(tmp_path / "run", {"berlin": GOOD[:3], "hamburg": AWAY})
    records = run.rounds.read()
    berlin, hamburg = totals_of_sites(records)
    assert (berlin.name, berlin.rounds) == ("berlin", {"took part": 3})
    assert (hamburg.downlink_bytes, hamburg.uplink_bytes) == (2 * 60_000, 2 * 61_000)
    # Each client has 20 examples.
    asked = [next(entry["num_asked"] for entry in record["sites"] if entry["site"] == "hamburg") for record in records]
    assert hamburg.num_examples == 20 * (asked[0] + asked[2])


def test_the_latest_own_measures_of_a_site_count():
    def record(accuracy: float) -> dict[str, object]:
        return {"sites": [{"site": "kiel", "measures": {"accuracy": accuracy}, "num_test_examples": 7}]}

    assert own_measures([record(0.5), record(0.6), {"sites": [{"site": "kiel"}]}], {})["kiel"].values == {
        "accuracy": 0.6
    }
    end = {"measures_of_sites": {"kiel": {"measures": {"accuracy": 0.8}, "num_test_examples": 7}}}
    assert own_measures([record(0.5)], end)["kiel"].values == {"accuracy": 0.8}


def test_sites_that_do_not_add_up_are_told(tmp_path: Path):
    run = make_deployed(tmp_path / "run", {"berlin": GOOD[:3], "hamburg": AWAY})
    assert history_of(run.path).misfits == ()
    records = run.rounds.read()
    records[1]["sites"][0]["num_examples"] += 5
    rewrite(run, records)
    [problem, *_] = history_of(run.path).misfits
    expected = records[1]["num_examples"]
    assert problem == (
        f"round 2: `num_examples` of the sites add up to {expected + 5}, the rest of the record makes it {expected}"
    )


def test_a_summary_that_hides_too_few_sites_is_told(tmp_path: Path):
    run = make_deployed(tmp_path / "run", {"berlin": GOOD[:3], "hamburg": AWAY})
    run.write_summary({key: value for key, value in read_json(run.summary).items() if key != "too_few_sites"})
    [problem] = history_of(run.path).misfits
    assert problem.startswith("`too_few_sites` is None in `summary.json`, the records of the rounds make it ")


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (3, "`sites` is 3, expected a list"),
        ([3], "`sites` has 3, expected the entry of a site with its name"),
        ([{"site": "kiel", "state": "asleep"}], "site 'kiel': `state` is 'asleep', expected one of"),
        (
            [{"site": "kiel", "state": "away", "since_round": 1.5}],
            "site 'kiel': `since_round` is 1.5, expected a whole",
        ),
    ],
)
def test_records_with_other_entries_are_refused_by_line(tmp_path: Path, sites: object, message: str):
    run = make_deployed(tmp_path / "run", {"berlin": GOOD[:3], "hamburg": AWAY})
    records = run.rounds.read()
    records[1]["sites"] = sites
    rewrite(run, records)
    with pytest.raises(RunError, match=f"line 2: {message}"):
        history_of(run.path)


def test_a_site_whose_answers_are_not_in_the_mean_counts_for_none():
    entries = [
        {"site": "bonn", "state": "took part", "num_asked": 2, "num_accepted": 0},
        {"site": "kiel", "state": "took part", "num_asked": 2, "num_accepted": 1},
    ]
    sentence = "1 of 1 rounds had fewer than 2 sites: 'bonn' not in the mean in 1."
    assert too_few_sites([{"sites": entries}], 2) == sentence
    assert too_few_sites([{"sites": entries}], 1) == ""
