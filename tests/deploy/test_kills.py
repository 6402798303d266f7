"""Whatever is killed -9 in the middle of a round, the round is complete and the run ends at the bits of a simulation.

All tests disturb one long run, each in the round that begins next; the last one waits for its end.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.deploy.expected import assert_same_bits, expected
from tests.deploy.harness import PROXY, SERVER_APP, SUPEREXEC, SUPERLINK, WORKER, Federation, Run, tensor_bytes
from tests.deploy.recipes import RECIPE

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]

# One for each test below, and some that a test may miss.
NUM_ROUNDS = 10
SETTINGS = [f"strategy.num_rounds={NUM_ROUNDS}", "client.local_steps=60"]


@pytest.fixture(scope="module")
def run(two_sites: Federation) -> Iterator[Run]:
    """A run that trains for a second or so in each round."""
    run = two_sites.deploy(RECIPE, "kills", *SETTINGS)
    yield run
    if run.program.is_running:  # a test failed
        two_sites.command("stop", "server", "stop", run.path)


def test_a_worker_that_is_killed_while_it_trains_is_replaced(federation: Federation, run: Run) -> None:
    site = federation.sites["hamburg"]
    killed: list[int] = []
    round = run.in_training(site, lambda: killed.append(site.kill(WORKER)))
    _assert_complete(run, round)
    assert killed == [1]
    assert len(site.workers) == 1


def test_a_site_that_is_killed_in_mid_round_and_comes_back_takes_part_in_it(federation: Federation, run: Run) -> None:
    site = federation.sites["kiel"]
    round = run.in_training(site, site.kill)
    assert not site.is_running
    site.run()
    _assert_complete(run, round)


@pytest.mark.parametrize("parts", [(SERVER_APP,), (SUPERLINK,), (PROXY, SUPEREXEC)], ids=" and ".join)
def test_a_program_of_the_server_that_is_killed_is_started_again(
    federation: Federation, run: Run, parts: tuple[str, ...]
) -> None:
    assert federation.server is not None
    server = federation.server
    round = run.in_training(federation.sites["hamburg"], lambda: server.kill(*parts))
    _assert_complete(run, round)


def test_a_server_that_is_killed_with_everything_goes_on_where_it_was(federation: Federation, run: Run) -> None:
    assert federation.server is not None
    server = federation.server
    round = run.in_training(federation.sites["hamburg"], server.kill)
    assert not server.tree()
    assert len(run.rounds) == round - 1
    federation.start_server()
    _assert_complete(run, round)


def test_after_all_of_this_bits_and_ledger_are_those_of_an_undisturbed_run(federation: Federation, run: Run) -> None:
    simulated = expected(federation.folder / "kills.toml", SETTINGS)
    run.wait()
    assert [record["round"] for record in run.rounds] == list(range(1, NUM_ROUNDS + 1))
    assert_same_bits(run.params, simulated.params)
    assert tensor_bytes(run.path) == simulated.tensor_bytes
    assert run.summary["final_accuracy"] == simulated.measures["accuracy"]
    assert "too_few_sites" not in run.summary


def _assert_complete(run: Run, round: int) -> None:
    """Every client that the round asked has taken part in it."""
    run.wait_for_round(round)
    record = run.rounds[round - 1]
    assert record["rejections"] == []
    assert {site["state"] for site in record["sites"]} == {"took part"}
    assert sum(site["num_accepted"] for site in record["sites"]) == len(record["cohort"]) == 4
