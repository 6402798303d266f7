"""Sites that are late, too few or out of room: nothing hangs, the mean is of the others, and the record says so."""

from __future__ import annotations

import signal

import pytest
from tests.deploy.expected import assert_same_bits, expected
from tests.deploy.harness import Federation
from tests.deploy.means import assert_mean_of_the_others
from tests.deploy.processes import until
from tests.deploy.recipes import RECIPE, SITE
from tests.deploy.troubles import fill, small_disk, wrong_clock

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]

IMPATIENT = ["deployment.min_grace_seconds=3", "deployment.grace_factor=1.5", "deployment.wait_seconds=3"]


def test_a_site_that_is_late_is_left_out_of_that_round_and_joins_the_next(federation: Federation) -> None:
    settings = [*IMPATIENT, "client.local_steps=60", "strategy.num_rounds=5", "strategy.clients_per_round=6"]
    run = federation.deploy(RECIPE, "late", *settings)
    site = federation.sites["kiel"]
    run.wait_for_round(1)
    (worker,) = site.workers
    worker.send_signal(signal.SIGSTOP)
    try:
        until(lambda: any(entry["state"] == "late" for entry in run.entries("kiel")), 60, "kiel is late")
    finally:
        worker.send_signal(signal.SIGCONT)
    run.wait()
    entries = run.entries("kiel")
    late = next(entry for entry in entries if entry["state"] == "late")
    assert late["num_asked"] == 3
    assert late["num_accepted"] == 0
    assert "has not answered within" in late["reason"]
    assert [entries[0]["state"], entries[-1]["state"]] == ["took part"] * 2
    assert_mean_of_the_others(federation.folder, run, settings)


def test_a_run_waits_for_its_sites_and_says_which_are_missing(federation: Federation) -> None:
    run = federation.deploy(RECIPE, "too-few", "deployment.min_sites=3", "deployment.start_seconds=4")
    status = run.program.wait(60)
    assert status != 0
    assert "2 of 3" in run.program.text
    assert "hint" in run.program.text


def test_a_site_that_is_registered_late_and_whose_clock_is_wrong_by_an_hour_takes_part(federation: Federation) -> None:
    bonn = federation.add_site("bonn", {**SITE, "clients": "6-8"}, env=wrong_clock(federation.folder, 3600))
    bonn.run()
    settings = ["partition.num_clients=9", "strategy.clients_per_round=9", "deployment.min_sites=3"]
    run = federation.deploy(RECIPE, "third", *settings)
    bonn.wait_for("does not accept this site's key")
    run.program.wait_for("2 of 3")
    federation.register("bonn")
    run.wait()
    assert "clock is 1 h 0 min ahead of the server's" in bonn.log
    assert [entry["state"] for entry in run.entries("bonn")] == ["took part"] * 3
    assert_same_bits(run.params, expected(federation.folder / "third.toml", settings).params)


def test_a_site_whose_disk_is_full_is_left_out_until_there_is_room(federation: Federation) -> None:
    settings = ["client.local_steps=60", "strategy.num_rounds=5", "strategy.clients_per_round=6"]
    site = federation.sites["kiel"]
    assert site.program is not None
    site.program.end()
    with small_disk(site.path / "state", size_mib=8):
        site.run()
        site.wait_until_joined()
        run = federation.deploy(RECIPE, "disk", *settings)
        run.wait_for_round(1)
        filler = fill(site.path / "state")
        until(lambda: any(record["rejections"] for record in run.rounds), 60, "the site says that its disk is full")
        filler.unlink()
        run.wait()
        rejections = [record["rejections"] for record in run.rounds]
        assert rejections[0] == rejections[-1] == []
        (rejected, *_) = filter(None, rejections)
        assert {rejection["client_id"] for rejection in rejected} == {3, 4, 5}
        assert "No space left" in rejected[0]["reason"]
        assert_mean_of_the_others(federation.folder, run, settings)
        site.program.end()
