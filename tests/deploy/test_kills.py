"""Whatever is killed -9 in the middle of a round, the run ends at the bits of an undisturbed one."""

from __future__ import annotations

import time

import pytest
from tests.deploy.expected import assert_same_bits, expected
from tests.deploy.harness import PROXY, SERVER_APP, SUPEREXEC, SUPERLINK, WORKER, Federation, Run, tensor_bytes
from tests.deploy.recipes import LONG_STEPS, RECIPE

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]


def test_a_worker_that_is_killed_while_it_trains_is_replaced(federation: Federation) -> None:
    run = federation.deploy(RECIPE, "worker-killed", LONG_STEPS)
    site = federation.sites["hamburg"]
    site.wait_until_training(round=2)
    worker = site.workers[0].pid
    assert site.kill(WORKER) == 1
    run.wait()
    assert site.workers[0].pid != worker
    _assert_undisturbed(federation, run)


def test_a_site_that_is_killed_in_mid_round_and_comes_back_takes_part_in_that_round(federation: Federation) -> None:
    run = federation.deploy(RECIPE, "site-killed", LONG_STEPS)
    site = federation.sites["kiel"]
    site.wait_until_training(round=2)
    site.kill()
    time.sleep(2)
    site.run()
    run.wait()
    _assert_undisturbed(federation, run)


@pytest.mark.parametrize("parts", [(SERVER_APP,), (SUPERLINK,), (PROXY, SUPEREXEC)], ids=" and ".join)
def test_a_program_of_the_server_that_is_killed_is_started_again(
    federation: Federation, parts: tuple[str, ...]
) -> None:
    run = federation.deploy(RECIPE, f"killed-{parts[0].split('.')[-1]}", LONG_STEPS)
    federation.sites["hamburg"].wait_until_training(round=2)
    assert federation.server is not None
    assert federation.server.kill(*parts) >= len(parts)
    run.wait()
    _assert_undisturbed(federation, run)


def test_a_server_that_is_killed_with_everything_goes_on_where_it_was(federation: Federation) -> None:
    run = federation.deploy(RECIPE, "server-killed", LONG_STEPS)
    federation.sites["hamburg"].wait_until_training(round=3)
    assert federation.server is not None
    federation.server.kill()
    assert not federation.server.tree()
    assert len(run.rounds) == 2
    federation.start_server()
    run.wait()
    _assert_undisturbed(federation, run)


def _assert_undisturbed(federation: Federation, run: Run) -> None:
    """Every client took part in every round that asked it, and bits and ledger are those of a simulation."""
    simulated = expected(federation.folder / f"{run.path.name}.toml", [LONG_STEPS])
    assert len(run.rounds) == 3
    assert [record["rejections"] for record in run.rounds] == [[]] * 3
    assert_same_bits(run.params, simulated.params)
    assert tensor_bytes(run.path) == simulated.tensor_bytes
    assert run.summary["final_accuracy"] == simulated.measures["accuracy"]
    assert "too_few_sites" not in run.summary
