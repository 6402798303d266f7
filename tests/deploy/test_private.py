"""Private runs over real servers and sites: secret noise from end to end, and seeded noise that is a simulation's."""

from __future__ import annotations

import json

import pytest
from tests.deploy.expected import assert_same_bits, expected
from tests.deploy.harness import WORKER, Federation
from tests.deploy.recipes import RECIPE

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]

STEPS = ("client.local_steps=2", "client.batch_size=4", "strategy.num_rounds=2")
FEDAVG = ("strategy.name=fedavg", "privacy.target_epsilon=8.0", "privacy.target_delta=1e-3")


def test_examples_are_protected_by_secret_noise_that_sites_count_also_when_a_worker_is_killed(
    federation: Federation,
) -> None:
    recipe = RECIPE + '\n[privacy]\nunit = "example"\n'
    run = federation.deploy(recipe, "private-examples", *STEPS, *FEDAVG, "strategy.num_rounds=3")
    site = federation.sites["hamburg"]
    run.in_training(site, lambda: site.kill(WORKER))
    run.wait()
    assert run.summary["privacy_unit"] == "example"
    assert run.summary["privacy_randomness"] == "secure"
    assert 0 < run.summary["epsilon"] <= 8.0
    assert [record["train_loss_nats"] for record in run.rounds] == [None] * 3
    assert [record["epsilon"] for record in run.rounds] == sorted(record["epsilon"] for record in run.rounds)
    assert "privacy: unit 'example', with noise of this site's own key" in site.said
    assert "privacy: epsilon" in site.said
    spent = {
        client: sum(times for _, _, times in entry["releases"])
        for place in federation.sites.values()
        for clients in json.loads((place.path / "state" / "privacy.json").read_text())["runs"].values()
        for client, entry in clients.items()
    }
    took_part = [client for record in run.rounds for client in record["cohort"]]
    assert spent == {str(client): 2 * took_part.count(client) for client in took_part}  # two steps a round


def test_clients_are_protected_by_noise_of_the_servers_key(federation: Federation) -> None:
    recipe = RECIPE + '\n[privacy]\nunit = "client"\n'
    run = federation.deploy(recipe, "private-clients", *STEPS, *FEDAVG).wait()
    assert (run.summary["privacy_unit"], run.summary["privacy_randomness"]) == ("client", "secure")
    assert run.summary["epsilon"] == pytest.approx(8.0, abs=0.01)
    assert (run.path / "checkpoint" / "privacy.key").stat().st_mode & 0o777 == 0o600


def test_seeded_noise_is_that_of_a_simulation_to_the_last_bit_and_a_site_that_insists_refuses_it(
    federation: Federation,
) -> None:
    recipe = RECIPE + '\n[privacy]\nunit = "local"\nnoise_multiplier = 1.0\nrandomness = "seeded"\n'
    run = federation.deploy(recipe, "private-seeded", *STEPS).wait()
    simulated = expected(federation.folder / "private-seeded.toml", STEPS)
    assert_same_bits(run.params, simulated.params)
    assert run.summary["privacy_randomness"] == "seeded"
    assert "BUT NOISE FROM THE RECIPE'S SEED" in federation.sites["kiel"].said
