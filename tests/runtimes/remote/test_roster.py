"""The beginning of a run: who is there, who has which clients, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from tests.runtimes.remote.local_link import LocalLink, LocalSite
from tests.runtimes.remote.small_sites import AT, INVITATION, SETTINGS, SiteProgram, Small, link_of, remote_of

from fedelta.errors import ConfigError
from fedelta.runtimes.remote.messages import REFUSED, Message
from fedelta.runtimes.remote.post import Post
from fedelta.runtimes.remote.profiles import Profile
from fedelta.runtimes.remote.roster import Roster, gather, numbered
from fedelta.strategies.fedavg import FedAvg
from fedelta.tasks.base import Sums

SMALL = Small(FedAvg(clients_per_round=4, num_rounds=2))


@pytest.fixture
def link() -> LocalLink:
    return link_of(SMALL)


def gathered(link: LocalLink, **settings: Any) -> Roster:
    chosen = SETTINGS.model_copy(update=settings)
    return gather(Post(link, chosen, link.clock), chosen, INVITATION)


def describing(clients: Mapping[str | int, int], **other: Any) -> LocalSite:
    """A site that only describes itself, with clients of these names or numbers."""
    entries = [{"key": key, "num_examples": size} for key, size in clients.items()]
    is_natural = not all(isinstance(key, int) for key in clients)
    return LocalSite(SiteProgram(SMALL, (), {"clients": entries, "is_natural": is_natural, **other}))


def test_parts_of_a_partition_keep_their_numbers(link: LocalLink):
    roster = gathered(link)
    assert roster.clients.numbers == (0, 1, 2, 3)
    assert roster.clients.names == {}
    assert roster.num_examples == {0: 5, 1: 7, 2: 4, 3: 8}
    assert roster.site_of == {0: "berlin", 1: "berlin", 2: "hamburg", 3: "hamburg"}
    assert Roster.from_record(roster.as_record()) == roster


def test_clients_with_names_are_numbered_over_all_sites_in_ascending_order():
    link = LocalLink({"south": describing({"c": 1, "a": 2}), "north": describing({"b": 3})})
    roster = gathered(link)
    assert roster.clients.names == {0: "a", 1: "b", 2: "c"}
    assert roster.numbers == {"north": {"b": 1}, "south": {"c": 2, "a": 0}}
    assert roster.num_examples == {0: 2, 1: 3, 2: 1}


def test_a_name_that_two_sites_use_has_to_be_changed_in_the_data():
    link = LocalLink({"south": describing({"a": 1, "b": 2}), "north": describing({"b": 3})})
    with pytest.raises(ConfigError, match="sites 'north' and 'south' both have a client 'b'") as caught:
        gathered(link)
    assert "rename them in the data" in str(caught.value.hint)


def test_names_that_are_whole_numbers_are_in_numerical_order():
    link = LocalLink({
        "south": describing({10: 1}, is_natural=True), "north": describing({9: 3}, is_natural=True),
    })  # fmt: skip
    assert gathered(link).clients.names == {0: 9, 1: 10}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((["a", "b"], ["a", "b"]), ("a", "b")),
        ((["b", "a"], ["a"]), ("b", "a")),  # the order of the site that has all of them
        ((["b", "c"], ["a", "c"]), ("a", "b", "c")),
    ],
)
def test_the_classes_are_those_of_all_sites(names: tuple[list[str], list[str]], expected: tuple[str, ...]):
    sites = [describing({number: 1}, class_names=of_site) for number, of_site in enumerate(names)]
    assert gathered(LocalLink(dict(zip("xy", sites, strict=True)))).class_names == expected


def test_all_registered_sites_are_waited_for_and_named_while_they_are(link: LocalLink):
    link.sites["munich"] = describing({4: 1})
    link.sites["munich"].is_online = False
    link.at.append((12.0, lambda: setattr(link.sites["munich"], "is_online", True)))
    said: list[str] = []
    roster = gather(Post(link, SETTINGS, link.clock), SETTINGS, INVITATION, lambda waiting: said.append(str(waiting)))
    assert list(roster.profiles) == ["berlin", "hamburg", "munich"]
    assert said[0] == "waiting for sites: 2 of 3, missing: munich (60 s left)"
    assert len(said) == 3


def test_a_run_begins_without_a_site_that_does_not_come_if_enough_are_there(link: LocalLink):
    link.sites["munich"] = describing({4: 1})
    link.sites["munich"].is_online = False
    assert list(gathered(link).profiles) == ["berlin", "hamburg"]
    assert 60 <= link.seconds < 70


def test_too_few_sites_are_an_error_that_names_the_missing_ones(link: LocalLink):
    link.sites["hamburg"].is_online = False
    with pytest.raises(ConfigError, match=r"1 sites were connected after 60 s, `deployment.min_sites` is 2.*hamburg"):
        gathered(link)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0.9"}, r"site 'hamburg': the site has version '0.9' of fedelta, the server has '1.0'"),
        ({"protocol": 99}, r"site 'hamburg': the site has version 99 of the protocol of messages, the server has 1"),
        ({"clients": [{"key": 1, "num_examples": 3}]}, r"sites 'berlin' and 'hamburg' both have a client 1"),
        ({"clients": [{"key": "x", "num_examples": 3}], "is_natural": True}, r"site 'hamburg' has clients of its own"),
        ({"clients": []}, r"`clients` is no list with at least one client"),
        ({"clients": [{"key": -1, "num_examples": 3}]}, r"the key of a client is -1"),
        ({"clients": [{"key": 2, "num_examples": 0}]}, r"`num_examples` is 0, expected a whole number of 1 or more"),
        ({"clients": [{"key": 2, "num_examples": 1}] * 2}, r"two clients of the site are called 2"),
        ({"class_names": "ab"}, r"`class_names` is 'ab', expected a list of texts"),
        ({"is_natural": 1}, r"`is_natural` is 1, expected true or false"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_by_name(link: LocalLink, change: dict[str, Any], message: str):
    link.sites["hamburg"].handler = SiteProgram(SMALL, AT["hamburg"], described=change)
    with pytest.raises(ConfigError, match=message):
        gathered(link)


@pytest.mark.parametrize(
    ("reason", "hint", "line"),
    [
        ("the data lack\na column", "Add it.", "the data lack a column (Add it.)"),
        ("2 problems in x:\n  - a is b\n  - c is d", "", "2 problems in x: a is b; c is d"),
    ],
)
def test_what_a_site_refuses_is_one_line_with_its_hint(link: LocalLink, reason: str, hint: str, line: str):
    link.sites["hamburg"].handler = lambda _: Message(REFUSED, {"reason": reason, "hint": hint})
    with pytest.raises(ConfigError) as caught:
        gathered(link)
    assert caught.value.problems == (f"site 'hamburg': {line}",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "regression"}, r"site 'hamburg': its task is 'regression', the server's is 't'"),
        ({"identity": {"base weights": "b2"}}, r"its base weights are not those of the server: digest b2, .* is a1"),
        ({"identity": {}}, r"its base weights are not those of the server: digest missing"),
        ({"fingerprint": "00"}, r"it tunes other tensors: fingerprint '00', the server's is '[0-9a-f]{16}'"),
    ],
)
def test_a_site_with_another_model_is_refused_by_name(link: LocalLink, change: dict[str, Any], message: str):
    link.sites["hamburg"].handler = SiteProgram(SMALL, AT["hamburg"], prepared=change)
    with pytest.raises(ConfigError, match=message):
        remote_of(SMALL, link)


def test_a_site_that_cannot_be_prepared_is_missed_only_if_too_few_are_left(link: LocalLink):
    program = link.sites["hamburg"].handler
    failing = LocalSite(lambda message: Message(REFUSED, {"reason": "no memory", "cause": "site failed"})
                        if message.kind == "prepare" else program(message))  # fmt: skip
    link.sites["hamburg"] = failing
    with pytest.raises(ConfigError, match=r"1 sites are ready, `deployment.min_sites` is 2\n.*'hamburg': no memory"):
        remote_of(SMALL, link)
    remote_of(SMALL, link, SETTINGS.model_copy(update={"min_sites": 1}))


def test_the_sums_over_targets_of_all_sites_are_added_and_kept():
    sites = {
        "b": Profile((), {"b": 3}, is_natural=True, num_test_examples=0, statistics=Sums({"target 0": (3.0, 3.0)})),
        "a": Profile((), {"a": 1}, is_natural=True, num_test_examples=0, statistics=Sums({"target 0": (5.0, 1.0)})),
    }
    roster = numbered(sites)
    assert roster.statistics == Sums({"target 0": (8.0, 4.0)})
    assert Roster.from_record(json.loads(json.dumps(roster.as_record()))).statistics == roster.statistics
    silent = numbered({**sites, "a": Profile((), {"a": 1}, is_natural=True, num_test_examples=0)})
    with pytest.raises(ConfigError, match="'a' share no sums over their targets") as caught:
        _ = silent.statistics
    assert "set in section `[task]` of the recipe" in str(caught.value.hint)
