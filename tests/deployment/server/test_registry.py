from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.deployment.fakes import Clock, SuperLink, hub_at, put_key

from fedelta.deployment.server.hub import Hub
from fedelta.deployment.server.overview import Site, local_time, overview
from fedelta.deployment.server.registry import Registry
from fedelta.errors import LinkError


@dataclass
class Trial:
    """A registry, and what it said."""

    hub: Hub
    superlink: SuperLink = field(default_factory=SuperLink)
    clock: Clock = field(default_factory=Clock)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = Registry(self.hub, self.superlink, self.said.append, self.clock)  # type: ignore[arg-type]

    def step(self) -> list[str]:
        """What is said in the next step."""
        self.said.clear()
        self.clock.now += 10
        self.registry.step()
        return list(self.said)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(hub_at(tmp_path / "hub"))


def test_a_key_in_the_folder_registers_its_site_once(trial: Trial):
    put_key(trial.hub, "hamburg")
    assert trial.step() == ["site 'hamburg' is registered"]
    assert trial.step() == []
    assert [node.name for node in trial.superlink.known.values()] == ["hamburg"]


def test_a_key_that_is_removed_ends_the_access_of_its_site(trial: Trial):
    put_key(trial.hub, "hamburg")
    trial.step()
    (trial.hub.sites / "hamburg.pub").unlink()
    assert trial.step() == ["site 'hamburg' is no longer registered"]
    assert trial.superlink.known == {}


def test_another_key_for_a_site_takes_the_place_of_the_first(trial: Trial):
    put_key(trial.hub, "hamburg")
    trial.step()
    first = set(trial.superlink.known)
    put_key(trial.hub, "hamburg")
    trial.step()
    assert len(trial.superlink.known) == 1
    assert not first & set(trial.superlink.known)


def test_a_key_that_flower_does_not_take_again_is_named_and_the_others_are_registered(trial: Trial):
    put_key(trial.hub, "hamburg")
    content = (trial.hub.sites / "hamburg.pub").read_bytes()
    trial.step()
    (trial.hub.sites / "hamburg.pub").unlink()
    trial.step()
    (trial.hub.sites / "hamburg.pub").write_bytes(content)
    put_key(trial.hub, "kiel")
    said = trial.step()
    assert "site 'kiel' is registered" in said
    assert any(line.startswith("hamburg.pub registers no site: Flower takes no key again") for line in said)
    assert trial.step() == []


def test_a_key_that_a_second_file_has_too_is_not_lost(trial: Trial):
    put_key(trial.hub, "hamburg")
    trial.step()
    twin = trial.hub.sites / "kiel.pub"
    twin.write_bytes((trial.hub.sites / "hamburg.pub").read_bytes())
    assert all("each site has its own" in line for line in trial.step())
    twin.unlink()
    assert trial.step() == []
    assert [node.name for node in trial.superlink.known.values()] == ["hamburg"]


def test_sites_that_come_and_go_are_told(trial: Trial):
    put_key(trial.hub, "hamburg")
    trial.step()
    trial.superlink.connect("hamburg")
    assert trial.step() == ["site 'hamburg' is online"]
    trial.superlink.connect("hamburg", "offline")
    assert trial.step() == ["site 'hamburg' is offline"]


def test_a_file_that_is_no_key_is_told_once(trial: Trial):
    (trial.hub.sites / "kiel.pub").write_text("nonsense", encoding="utf-8")
    (said,) = trial.step()
    assert said.startswith("kiel.pub registers no site: the file holds no public key")
    assert trial.step() == []


def test_while_the_superlink_is_away_nothing_changes(trial: Trial):
    put_key(trial.hub, "hamburg")
    trial.superlink.is_up = False
    with pytest.raises(LinkError, match="cannot be reached"):
        trial.step()
    trial.superlink.is_up = True
    assert trial.step() == ["site 'hamburg' is registered"]


def test_without_a_running_server_the_overview_says_so(trial: Trial):
    put_key(trial.hub, "hamburg")
    shown = overview(trial.hub)
    assert shown.sites == [Site("hamburg", "unknown", "", "")]
    assert shown.notes[-1].startswith("no server runs on")


def test_the_overview_shows_what_the_running_server_knows(trial: Trial, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedelta.deployment.server.overview.is_served", lambda hub: True)
    put_key(trial.hub, "hamburg")
    put_key(trial.hub, "kiel")
    (trial.hub.sites / "ulm.pub").write_text("nonsense", encoding="utf-8")
    trial.step()
    trial.superlink.connect("kiel")
    trial.step()
    shown = overview(trial.hub)
    assert shown.sites == [Site("hamburg", "never seen", "", ""), Site("kiel", "online", "10:00", "")]
    assert [note.split(":")[0] for note in shown.notes] == ["ulm.pub registers no site"]


def test_times_are_shown_to_the_second_on_the_clock_of_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Etc/GMT-2")  # two hours ahead of Greenwich
    time.tzset()
    try:
        assert local_time("2026-11-28T23:19:44.040629+00:00") == "2026-11-29 01:19:44"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert not local_time("")
