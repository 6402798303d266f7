"""Sites that are late, dead or too few: nothing hangs, the mean is that of the others, and the record says so."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.deploy.apart import DEAD, Happened
from tests.deploy.expected import assert_same_bits, expected, lost_clients
from tests.deploy.harness import Federation, Run, tensor_bytes
from tests.deploy.processes import until
from tests.deploy.recipes import RECIPE, SITE
from tests.deploy.troubles import wrong_clock

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]

IMPATIENT = ["deployment.min_grace_seconds=3", "deployment.grace_factor=1.5", "deployment.wait_seconds=3"]


def test_a_site_that_is_dead_for_good_costs_one_deadline_and_the_summary_begins_with_it(happened: Happened) -> None:
    run = happened.dead
    states = [entry["state"] for entry in run.entries("kiel")]
    assert states[:2] == ["took part"] * 2
    assert states[-1] == "away"
    assert run.entries("kiel")[-1]["since_round"] < len(states)
    # A node is taken for dead 40 s after its last sign of life, and that is waited for once.
    assert happened.seconds < 80
    _assert_mean_of_the_others(happened.folder, run, DEAD)
    first, sentence = next(iter(run.summary.items()))
    assert first == "too_few_sites"
    assert "of 8 rounds had fewer than 2 sites" in sentence
    assert "'kiel' away in" in sentence
    assert "had fewer than 2 sites" in run.program.text
    assert "had fewer than 2 sites" in happened.page


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
    _assert_mean_of_the_others(federation.folder, run, settings)


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


def _assert_mean_of_the_others(folder: Path, run: Run, settings: list[str]) -> None:
    """The run's result is that of a simulation in which exactly the clients that its record names are lost."""
    lost = lost_clients(run.rounds)
    assert any(lost.values())
    simulated = expected(folder / f"{run.path.name}.toml", settings, lost)
    assert_same_bits(run.params, simulated.params)
    assert run.summary["final_accuracy"] == simulated.measures["accuracy"]
    uploads = {key: size for key, size in simulated.tensor_bytes.items() if key[2] == "up"}
    assert {key: size for key, size in tensor_bytes(run.path).items() if key[2] == "up"} == uploads
