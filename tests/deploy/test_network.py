"""A network that is cut for half a minute, and a disk that is full."""

from __future__ import annotations

import pytest
from tests.deploy.apart import CUT, CUT_SECONDS, Happened
from tests.deploy.expected import assert_same_bits, expected, lost_clients
from tests.deploy.harness import Federation, tensor_bytes
from tests.deploy.processes import until
from tests.deploy.recipes import RECIPE
from tests.deploy.troubles import fill, small_disk

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]

STEPS = "client.local_steps=60"


def test_a_network_that_is_cut_for_half_a_minute_loses_nothing(happened: Happened) -> None:
    run = happened.cut
    simulated = expected(happened.folder / "cut.toml", CUT)
    assert [record["rejections"] for record in run.rounds] == [[]] * 3
    assert max(entry["seconds"] for entry in run.entries("kiel")) > CUT_SECONDS
    assert_same_bits(run.params, simulated.params)
    assert tensor_bytes(run.path) == simulated.tensor_bytes
    # What it says depends on whether it had finished training when the line was cut.
    assert "the server is reached again" in happened.kiel or "s to deliver" in happened.kiel
    assert "too_few_sites" not in run.summary


def test_a_site_whose_disk_is_full_is_left_out_until_there_is_room(federation: Federation) -> None:
    settings = [STEPS, "strategy.num_rounds=5", "strategy.clients_per_round=6"]
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
        simulated = expected(federation.folder / "disk.toml", settings, lost_clients(run.rounds))
        assert_same_bits(run.params, simulated.params)
        site.program.end()
