"""A network that is cut for half a minute, and a disk that is full."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.deploy.expected import assert_same_bits, expected, lost_clients
from tests.deploy.harness import Federation, tensor_bytes
from tests.deploy.recipes import HAMBURG, KIEL, LONG_STEPS, RECIPE
from tests.deploy.troubles import fill, network, small_disk

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]


def test_a_network_that_is_cut_for_half_a_minute_loses_nothing(tmp_path: Path) -> None:
    with network() as wire, Federation(tmp_path, host=wire.address, at_server=wire.at_server) as federation:
        federation.start_server()
        federation.add_site("hamburg", HAMBURG, prefix=wire.at_server)
        federation.add_site("kiel", KIEL, prefix=wire.at_site)
        federation.register("hamburg", "kiel")
        for site in federation.sites.values():
            site.run()
        run = federation.deploy(RECIPE, "cut", LONG_STEPS)
        federation.sites["kiel"].wait_until_training(round=2)
        wire.cut()
        time.sleep(30)
        wire.mend()
        run.wait()
        simulated = expected(tmp_path / "cut.toml", [LONG_STEPS])
        assert [record["rejections"] for record in run.rounds] == [[]] * 3
        assert_same_bits(run.params, simulated.params)
        assert tensor_bytes(run.path) == simulated.tensor_bytes
        assert "the server is reached again" in federation.sites["kiel"].said


def test_a_site_whose_disk_is_full_is_left_out_until_there_is_room(federation: Federation) -> None:
    settings = [LONG_STEPS, "strategy.num_rounds=5", "strategy.clients_per_round=6"]
    site = federation.sites["kiel"]
    assert site.program is not None
    site.program.end()
    with small_disk(site.path / "state", size_mib=8):
        site.run()
        site.wait_until_joined()
        run = federation.deploy(RECIPE, "disk", *settings)
        site.wait_until_training(round=2)
        filler = fill(site.path / "state")
        run.wait_for_round(3)
        filler.unlink()
        run.wait()
        rejections = [record["rejections"] for record in run.rounds]
        assert rejections[0] == []
        assert {rejection["client_id"] for rejection in rejections[1]} == {3, 4, 5}
        assert "No space left" in rejections[1][0]["reason"]
        assert rejections[-1] == []
        simulated = expected(federation.folder / "disk.toml", settings, lost_clients(run.rounds))
        assert_same_bits(run.params, simulated.params)
        site.program.end()
