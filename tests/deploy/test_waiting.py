"""A network that is cut for half a minute, and a site that never comes back: both happen while the other tests run.

This file is the last one by its name, so that little is left to wait for.
"""

from __future__ import annotations

import pytest
from tests.deploy.apart import CUT, CUT_SECONDS, DEAD, Happened
from tests.deploy.expected import assert_same_bits, expected
from tests.deploy.harness import tensor_bytes
from tests.deploy.means import assert_mean_of_the_others

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]


def test_a_network_that_is_cut_for_half_a_minute_loses_nothing(happened: Happened) -> None:
    run = happened.cut
    simulated = expected(happened.folder / "cut.toml", CUT)
    assert [record["rejections"] for record in run.rounds] == [[]] * 3
    assert max(entry["seconds"] for entry in run.entries("kiel")) > CUT_SECONDS
    assert_same_bits(run.params, simulated.params)
    assert tensor_bytes(run.path) == simulated.tensor_bytes
    assert "too_few_sites" not in run.summary


def test_a_site_that_is_dead_for_good_costs_one_deadline_and_the_summary_begins_with_it(happened: Happened) -> None:
    run = happened.dead
    states = [entry["state"] for entry in run.entries("kiel")]
    assert states[:2] == ["took part"] * 2
    assert states[-1] == "away"
    assert run.entries("kiel")[-1]["since_round"] < len(states)
    # A node is taken for dead 40 s after its last sign of life, and that is waited for once, not in each of six rounds.
    assert happened.seconds < 120
    assert_mean_of_the_others(happened.folder, run, DEAD)
    first, sentence = next(iter(run.summary.items()))
    assert first == "too_few_sites"
    assert "of 8 rounds had fewer than 2 sites" in sentence
    assert "'kiel' away in" in sentence
    assert "had fewer than 2 sites" in run.program.text
    assert "had fewer than 2 sites" in happened.page
