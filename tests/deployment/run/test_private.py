"""Private runs over sites: what the server and each site count, over kills, late answers and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.deployment.local import AT, Local
from tests.deployment.run.test_conduct import before, killed, rounds_of, summary_of
from tests.small import SMALL

from fedelta.deployment.site.account import Account, Limit
from fedelta.deployment.site.protection import KEY as SITE_KEY
from fedelta.privacy.accounting import epsilons
from fedelta.privacy.correlated import fitted
from fedelta.privacy.state import Release
from fedelta.record.checkpoint import load
from fedelta.record.keys import KEY
from fedelta.record.rundir import CHECKPOINT

STEPS = ("client.local_epochs=", "client.local_steps=2", "client.batch_size=4", "evaluate_every=3")
LOCAL = (*STEPS, "privacy.unit=local", "privacy.noise_multiplier=8.0")
EXAMPLE = (*STEPS, "privacy.unit=example", "privacy.noise_multiplier=2.0")
CLIENT = (*STEPS, "privacy.unit=client", "privacy.noise_multiplier=2.0")
DELTA = 1e-5


def deployed(folder: Path, *settings: str, **insistence: Any) -> Local:
    own = {site: {"privacy": insistence} for site in AT} if insistence else {}
    return Local(folder, text=SMALL, overrides=settings, own=own)


def counted(local: Local) -> dict[str, dict[Release, int]]:
    """What the sites have counted about each client in the one run that there is."""
    releases: dict[str, dict[Release, int]] = {}
    for site in local.at:
        account = Account(local.folder / site, Limit(DELTA))._read()
        for clients in account["runs"].values():
            for client, entry in clients.items():
                assert client not in releases
                releases[client] = {Release(noise, rate): times for noise, rate, times in entry["releases"]}
    return releases


def spent(local: Local) -> dict[str, dict[Release, int]]:
    """What the server has counted."""
    return {who: dict(releases) for who, releases in load(local.run / CHECKPOINT).privacy.spent.items()}


@pytest.mark.parametrize("settings", [LOCAL, EXAMPLE], ids=["local", "example"])
def test_sites_and_server_count_the_same_about_every_client(tmp_path, settings):
    local = deployed(tmp_path / "deployed", *settings)
    local.conduct()
    assert counted(local) == spent(local)
    assert sum(sum(releases.values()) for releases in spent(local).values()) == 9 * (1 if settings is LOCAL else 2)
    summary = summary_of(local.run)
    worst = max(epsilons(releases, DELTA).pld for releases in spent(local).values())
    assert summary["epsilon"] == pytest.approx(worst)
    assert summary["privacy_randomness"] == "secure"
    assert [record["train_loss_nats"] for record in rounds_of(local.run)] == [None] * 3
    assert not (local.run / KEY).exists()  # the sites have keys, the server has none


def test_two_deployments_of_one_recipe_have_different_noise_and_the_same_cohorts(tmp_path):
    first, second = (deployed(tmp_path / name, *LOCAL) for name in "ab")
    for local in (first, second):
        local.conduct()
    one, other = (load(local.run / CHECKPOINT).params["classifier.bias"] for local in (first, second))
    assert not torch.equal(one, other)
    assert [r["cohort"] for r in rounds_of(first.run)] == [r["cohort"] for r in rounds_of(second.run)]


@pytest.mark.parametrize("message", [1, 2, 3])
@pytest.mark.parametrize("settings", [LOCAL, EXAMPLE], ids=["local", "example"])
def test_a_server_that_is_killed_and_goes_on_changes_no_count(tmp_path, settings, message):
    local = deployed(tmp_path / "deployed", *settings)
    before(local, "train", message, killed)
    with pytest.raises(KeyboardInterrupt):
        local.conduct()
    local.conduct()
    assert counted(local) == spent(local)
    assert len(rounds_of(local.run)) == 3


def test_a_site_that_is_killed_after_it_has_answered_gives_the_same_answer_and_counts_it_once(tmp_path):
    local = deployed(tmp_path / "deployed", *LOCAL)
    site = local.sites["hamburg"]
    answers: list[Any] = []

    def twice(message: Any) -> Any:
        if message.kind != "train":
            return local.service("hamburg").answer(message)
        answers.append(local.service("hamburg").answer(message))
        answers.append(local.service("hamburg").answer(message))  # another process, after a kill -9
        return answers[-1]

    site.handler = twice
    local.conduct()
    assert answers
    for first, second in zip(answers[::2], answers[1::2], strict=True):
        assert (first.manifest, list(first.blobs)) == (second.manifest, list(second.blobs))
    assert counted(local) == spent(local)


def test_a_client_at_its_sites_limit_is_left_out_and_the_run_goes_on(tmp_path):
    # z = 8 counts as a Gaussian mechanism with 4: epsilon 0.90 at delta 1e-5, twice 1.33.
    more = ("strategy.clients_per_round=5", "strategy.num_rounds=2")  # of 6 clients: one is new in round 2
    local = deployed(tmp_path / "deployed", *LOCAL, *more, unit="local", max_epsilon=1.0)
    local.conduct()
    assert all(releases == {Release(4.0): 1} for releases in counted(local).values())
    cohorts = [number for record in rounds_of(local.run) for number in record["cohort"]]
    reasons = [rejection["reason"] for record in rounds_of(local.run) for rejection in record["rejections"]]
    assert len(reasons) == len(cohorts) - len(set(cohorts)) > 0
    assert set(reasons) == {"the site releases no more about this client: its own limit would be exceeded"}


def test_the_server_of_a_client_level_run_has_a_key_and_a_site_counts_nothing(tmp_path):
    local = deployed(tmp_path / "deployed", *CLIENT, unit="client")
    local.conduct()
    assert (local.run / KEY).stat().st_mode & 0o777 == 0o600
    assert counted(local) == {}
    summary = summary_of(local.run)
    # Poisson cohorts of 3 of 6 clients, 3 rounds of z = 2.
    assert summary["epsilon"] == pytest.approx(epsilons({Release(2.0, 0.5): 3}, DELTA).pld)
    assert (summary["privacy_unit"], summary["privacy_randomness"]) == ("client", "secure")


def test_a_client_level_run_that_is_killed_goes_on_with_its_key(tmp_path):
    local = deployed(tmp_path / "deployed", *CLIENT, "strategy.num_rounds=6")
    before(local, "train", 2, killed)
    with pytest.raises(KeyboardInterrupt):
        local.conduct()
    key = (local.run / KEY).read_bytes()
    local.conduct()
    assert (local.run / KEY).read_bytes() == key
    assert len(rounds_of(local.run)) == 6
    assert spent(local) == {"": {Release(2.0, 0.5): 6}}


def test_no_key_is_in_anything_that_is_sent_shown_or_written_elsewhere(tmp_path):
    local = deployed(tmp_path / "deployed", *LOCAL)
    local.conduct()
    for site in local.at:
        key = (local.folder / site / SITE_KEY).read_bytes()
        for path in local.run.rglob("*"):
            assert not path.is_file() or key not in path.read_bytes()
            assert not path.is_file() or key.hex().encode() not in path.read_bytes()


def test_a_deployment_whose_noise_is_the_recipes_seed_says_so_everywhere(tmp_path, caplog):
    local = deployed(tmp_path / "deployed", *LOCAL, "privacy.randomness=seeded")
    local.conduct()
    assert summary_of(local.run)["privacy_randomness"] == "seeded"
    assert counted(local) == {}  # what protects nobody is no epsilon
    said = [record.message for record in caplog.records if "the recipe can take the noise out again" in record.message]
    assert len(said) >= 3  # the server and both sites


def test_clients_of_a_deployment_take_turns_and_a_killed_server_still_has_the_labels_of_its_noise(tmp_path):
    # 3 of 6 clients: everyone has 3 turns in 6 rounds. The server is killed in round 3 or 4, when it has forgotten
    # the noise of the rounds before.
    banded = (*CLIENT, "privacy.mechanism=banded", "privacy.bands=2", "strategy.num_rounds=6")
    local = deployed(tmp_path / "deployed", *banded, unit="client")
    before(local, "train", 5, killed)
    with pytest.raises(KeyboardInterrupt):
        local.conduct()
    assert len(load(local.run / CHECKPOINT).privacy.labels) == 1
    local.conduct()
    cohorts = [record["cohort"] for record in rounds_of(local.run)]
    assert cohorts[0::2] == [cohorts[0]] * 3
    assert cohorts[1::2] == [cohorts[1]] * 3
    assert sorted(cohorts[0] + cohorts[1]) == list(range(6))
    correlated = fitted(2, 6, 6, 3)
    assert correlated.weights[1] < -0.1
    assert spent(local) == {"": {Release(2.0 / correlated.sensitivity(6)): 1}}
    assert summary_of(local.run)["privacy_mechanism"] == "banded"


def test_clients_whose_answer_is_late_are_counted_by_the_server_since_it_may_have_seen_them(tmp_path):
    local = deployed(tmp_path / "deployed", *LOCAL, "strategy.clients_per_round=6", "strategy.num_rounds=1")
    local.sites["hamburg"].seconds = {"train": 1000.0}  # `round_seconds` is 600
    local.conduct()
    assert {rejection["cause"] for rejection in rounds_of(local.run)[0]["rejections"]} == {"too late"}
    assert spent(local) == {str(number): {Release(4.0): 1} for number in range(6)}


def test_clients_that_no_message_has_reached_are_not_counted(tmp_path):
    local = deployed(tmp_path / "deployed", *LOCAL, "strategy.clients_per_round=6", "strategy.num_rounds=2")
    berlin, hamburg = local.sites["berlin"], local.sites["hamburg"]
    answer = berlin.handler

    def watched(message: Any) -> Any:
        if message.kind == "train" and message.manifest["round"] == 1:
            hamburg.is_online = False  # it has been asked, but no answer comes
        return answer(message)

    berlin.handler = watched
    local.conduct()
    second = rounds_of(local.run)[1]
    assert {(rejection["client_id"], rejection["cause"]) for rejection in second["rejections"]} == {
        (number, "away") for number in (3, 4, 5)
    }
    # In round 1 it may have answered, in round 2 it cannot.
    assert {number: sum(spent(local)[str(number)].values()) for number in (0, 3)} == {0: 2, 3: 1}


def test_rounds_without_any_client_are_noise_and_count(tmp_path):
    more = ("strategy.clients_per_round=1", "strategy.num_rounds=8", "privacy.randomness=seeded", "seed=5")
    local = deployed(tmp_path / "deployed", *CLIENT, *more)
    local.conduct()
    cohorts = [record["cohort"] for record in rounds_of(local.run)]
    assert [] in cohorts
    assert max(map(len, cohorts)) > 1
    assert spent(local) == {"": {Release(2.0, 1 / 6): 8}}
