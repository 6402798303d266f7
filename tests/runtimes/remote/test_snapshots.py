"""What the server knows of its sites, on its disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtimes.remote.small_sites import Small, link_of, remote_of

from fedelta.errors import CheckpointError
from fedelta.federation.rounds import federate
from fedelta.strategies.fedavg import FedAvg

SMALL = Small(FedAvg(clients_per_round=4, num_rounds=4))


def test_two_snapshots_are_kept_and_older_ones_deleted(tmp_path: Path):
    remote = remote_of(SMALL, link_of(SMALL))
    marks = [remote.snapshot(tmp_path, outcome.round) for outcome in federate(SMALL.federation(remote), SMALL.standing)]
    assert {path.name for path in tmp_path.glob("*.json")} == {f"sites-{mark}.json" for mark in marks[-2:]}


def test_since_when_a_site_is_away_survives_a_restart_of_the_server(tmp_path: Path):
    link = link_of(SMALL)
    remote = remote_of(SMALL, link)
    rounds = federate(SMALL.federation(remote), SMALL.standing)
    next(rounds)
    link.sites["hamburg"].is_online = False
    away = next(rounds).sites[1]
    mark = remote.snapshot(tmp_path, 2)
    link.sites["hamburg"].is_online = True
    again = remote_of(SMALL, link)
    link.sites["hamburg"].is_online = False
    again.restore(tmp_path, mark)
    hamburg = next(federate(SMALL.federation(again), SMALL.standing)).sites[1]
    assert (hamburg.state, hamburg.since, hamburg.since_round) == ("away", away.since, 2)


@pytest.mark.parametrize("damage", ["deleted", "changed"])
def test_a_snapshot_that_is_missing_or_changed_is_an_error(damage: str, tmp_path: Path):
    remote = remote_of(SMALL, link_of(SMALL))
    mark = remote.snapshot(tmp_path, 1)
    path = tmp_path / f"sites-{mark}.json"
    if damage == "deleted":
        path.unlink()
    else:
        path.write_text(path.read_text().replace("berlin", "munich"))
    with pytest.raises(CheckpointError, match=r"sites-.*which says what the sites keep, cannot be read"):
        remote.restore(tmp_path, mark)
