"""Rounds over sites that are late, vanish, come back, crash, forget or answer nonsense; time is counted, not spent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.runtimes.remote.local_link import Handler, LocalLink
from tests.runtimes.remote.small_sites import AT, ROWS, SETTINGS, SiteProgram, Small, link_of, remote_of
from tests.runtimes.remote.test_parity import assert_same, simulated

from fedelta.errors import RoundError
from fedelta.federation.records import Attendance, RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.runtimes.remote.link import Receipt
from fedelta.runtimes.remote.messages import Message
from fedelta.runtimes.remote.settings import Deployment
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.scaffold import Scaffold

ALL = Small(FedAvg(clients_per_round=4, num_rounds=6))
# Patience after a round of one second is 20 s, the least grace; a message may take 600 s.


@pytest.fixture
def link() -> LocalLink:
    return link_of(ALL)


def rounds_of(small: Small, link: LocalLink, settings: Deployment = SETTINGS) -> Iterator[RoundOutcome]:
    return federate(small.federation(remote_of(small, link, settings)), small.standing)


def states(outcome: RoundOutcome) -> dict[str, str]:
    return {attendance.site: attendance.state for attendance in outcome.sites}


def of_site(outcome: RoundOutcome, site: str) -> Attendance:
    return next(attendance for attendance in outcome.sites if attendance.site == site)


def reasons(outcome: RoundOutcome) -> set[tuple[int, str, str]]:
    return {(rejection.client_id, rejection.cause, rejection.reason) for rejection in outcome.rejections}


def test_a_site_gets_one_message_a_round_with_each_distinct_download_once(link: LocalLink):
    seen: list[Message] = []
    handler = link.sites["berlin"].handler
    link.sites["berlin"].handler = listening(handler, seen)
    next(rounds_of(ALL, link))
    [message] = [message for message in seen if message.kind == "train"]
    assert len(message.blobs) == 1
    assert [(client["id"], client["download"]) for client in message.manifest["clients"]] == [(0, 0), (1, 0)]
    assert link.log.count(("hamburg", "train", 2.0)) <= 1


def listening(handler: Handler, seen: list[Message]) -> Handler:
    def listen(message: Message) -> Message:
        seen.append(message)
        return handler(message)

    return listen


def test_the_record_says_what_each_site_did(link: LocalLink):
    outcome = next(rounds_of(ALL, link))
    berlin, hamburg = outcome.sites
    assert (berlin.site, berlin.state, berlin.since_round, berlin.num_asked, berlin.num_accepted) == (
        "berlin", "took part", 1, 2, 2,
    )  # fmt: skip
    assert berlin.num_examples == ROWS[0] + ROWS[1]
    assert hamburg.num_examples == ROWS[2] + ROWS[3]
    assert berlin.since == "2026-01-01T00:00:02+00:00" or berlin.since.startswith("2026-01-01T00:00:0")
    assert berlin.seconds == pytest.approx(1.0, abs=0.5)


def test_wire_bytes_are_the_payloads_each_once_and_little_more(link: LocalLink):
    outcomes = list(rounds_of(ALL, link))
    downlink = {len_of(outcome, "down") for outcome in outcomes}
    for outcome in outcomes[1:]:  # round 1 counts the messages of the beginning too
        berlin = of_site(outcome, "berlin")
        [payload] = {transfer.payload_bytes for transfer in outcome.transfers if transfer.direction == "down"}
        uplink = sum(t.payload_bytes for t in outcome.transfers if t.direction == "up" and t.client_id in AT["berlin"])
        assert payload < berlin.downlink_bytes < payload + 2000
        assert uplink < berlin.uplink_bytes < uplink + 1000
    assert len(downlink) == 1


def len_of(outcome: RoundOutcome, direction: str) -> int:
    return sum(transfer.payload_bytes for transfer in outcome.transfers if transfer.direction == direction)


def test_a_late_site_joins_again_with_more_patience(link: LocalLink):
    rounds = rounds_of(ALL, link)
    assert states(next(rounds)) == {"berlin": "took part", "hamburg": "took part"}
    link.sites["hamburg"].seconds = 50.0
    late = next(rounds)
    assert states(late)["hamburg"] == "late"
    assert reasons(late) == {
        (client, "too late", "site 'hamburg': it has not answered within 20 s") for client in WHOLE
    }
    began = link.seconds
    # It is waited for: its answer to round 2 comes after 30 s, then it works for 50 s on round 3.
    assert states(next(rounds))["hamburg"] == "took part"
    assert 70 < link.seconds - began < 90
    assert len(link.asked("hamburg")) == 3
    assert states(next(rounds))["hamburg"] == "took part"


def test_a_site_that_hangs_costs_one_deadline_once(link: LocalLink):
    rounds = rounds_of(ALL, link)
    next(rounds)
    link.sites["hamburg"].seconds = 10**6
    began = link.seconds
    found = [states(outcome)["hamburg"] for outcome in rounds]
    assert found == ["late", "busy", "busy", "busy", "busy"]
    assert link.seconds - began < SETTINGS.round_seconds + 10
    assert len(link.asked("hamburg")) == 2


def test_an_answer_that_comes_very_late_frees_its_site(link: LocalLink):
    small = Small(FedAvg(clients_per_round=4, num_rounds=16))
    link = link_of(small)
    rounds = rounds_of(small, link)
    next(rounds)
    hamburg = link.sites["hamburg"]
    hamburg.seconds = 700.0
    link.sites["berlin"].seconds = 15.0
    next(rounds)
    hamburg.seconds = 1.0
    found = [states(outcome)["hamburg"] for outcome in rounds]
    assert found[0] == "busy"
    assert found[-1] == "took part"


def test_a_dead_site_costs_its_grace_once_and_is_named_since_when(link: LocalLink):
    settings = SETTINGS.model_copy(update={"wait_seconds": 0.0})
    rounds = rounds_of(ALL, link, settings)
    next(rounds)
    link.at.append((link.seconds + 0.5, lambda: go(link, "hamburg")))
    began = link.seconds
    dead = next(rounds)
    assert states(dead) == {"berlin": "took part", "hamburg": "away"}
    assert 19 < link.seconds - began < 25
    assert {rejection.cause for rejection in dead.rejections} == {"away"}
    began = link.seconds
    later = list(rounds)
    assert [states(outcome)["hamburg"] for outcome in later] == ["away"] * 4
    assert link.seconds - began < 4 * 2
    assert {of_site(outcome, "hamburg").since_round for outcome in later} == {2}
    assert {of_site(outcome, "hamburg").since for outcome in later} == {of_site(dead, "hamburg").since}
    # Nothing was sent to it any more.
    assert not any(t.client_id in AT["hamburg"] for t in later[0].transfers)
    assert len_of(later[0], "down") < len_of(dead, "down")


def go(link: LocalLink, site: str) -> None:
    link.sites[site].is_online = False


def test_a_round_with_too_few_sites_waits_for_more_once(link: LocalLink):
    rounds = rounds_of(ALL, link)
    next(rounds)
    go(link, "hamburg")
    began = link.seconds
    next(rounds)
    assert 30 <= link.seconds - began < 60
    began = link.seconds
    next(rounds)
    assert link.seconds - began < 5
    link.sites["hamburg"].restart()
    assert states(next(rounds))["hamburg"] == "took part"


def test_without_any_site_every_round_waits_and_none_counts(link: LocalLink):
    rounds = rounds_of(ALL, link)
    next(rounds)
    for site in link.sites:
        go(link, site)
    began = link.seconds
    first, second = next(rounds), next(rounds)
    assert link.seconds - began >= 60
    assert first.num_examples == second.num_examples == 0
    assert states(second) == {"berlin": "away", "hamburg": "away"}


@pytest.mark.parametrize("reports_lost", [True, False])
def test_a_site_that_is_killed_and_back_in_the_same_round_loses_nothing(link: LocalLink, reports_lost: bool):
    link.reports_lost = reports_lost
    rounds = rounds_of(ALL, link)
    outcomes = [next(rounds)]
    hamburg = link.sites["hamburg"]
    program = hamburg.handler
    assert isinstance(program, SiteProgram)

    def kill() -> None:
        go(link, "hamburg")
        program.is_prepared = False

    link.at += [(link.seconds + 0.5, kill), (link.seconds + 10.0, hamburg.restart)]
    outcomes += rounds
    assert_same(outcomes, simulated(ALL))
    assert len(link.asked("hamburg", "prepare")) == 2
    assert {state for outcome in outcomes for state in states(outcome).values()} == {"took part"}


def test_a_line_that_is_cut_for_a_while_costs_no_second_message(link: LocalLink):
    rounds = rounds_of(ALL, link)
    outcomes = [next(rounds)]
    hamburg = link.sites["hamburg"]

    def mend() -> None:
        hamburg.is_online = True

    link.at += [(link.seconds + 0.5, lambda: go(link, "hamburg")), (link.seconds + 15.0, mend)]
    outcomes += rounds
    assert_same(outcomes, simulated(ALL))
    assert len(link.asked("hamburg")) == 6


def test_an_engine_that_is_restarted_is_no_fault_of_any_site(link: LocalLink):
    rounds = rounds_of(ALL, link)
    outcomes = [next(rounds)]

    def down(is_down: bool) -> Callable[[], None]:
        return lambda: setattr(link, "is_down", is_down)

    link.at += [(link.seconds + 0.5, down(True)), (link.seconds + 300.0, down(False))]
    outcomes += rounds
    assert_same(outcomes, simulated(ALL))


def test_a_call_of_the_engine_that_takes_long_is_no_fault_of_any_site(link: LocalLink):
    rounds = rounds_of(ALL, link)
    outcomes = [next(rounds)]
    receive = link.receive

    def slow(tickets: Collection[str]) -> list[Receipt]:
        if not tickets:
            return []
        link.sleep(100.0)
        link.receive = receive
        return []

    link.sites["hamburg"].seconds = 110.0
    link.receive = slow
    outcomes.append(next(rounds))
    assert states(outcomes[-1])["hamburg"] == "took part"


def test_a_program_that_dies_once_is_asked_again(link: LocalLink):
    rounds = rounds_of(ALL, link)
    outcomes = [next(rounds)]
    link.failures["hamburg"] = ["the program was killed"]
    outcomes += rounds
    assert_same(outcomes, simulated(ALL))


def test_a_program_that_dies_again_and_again_costs_its_site_the_round(link: LocalLink):
    rounds = rounds_of(ALL, link)
    next(rounds)
    link.failures["hamburg"] = ["the program was killed"] * 3
    failed = next(rounds)
    assert states(failed) == {"berlin": "took part", "hamburg": "failed"}
    assert (
        2,
        "site failed",
        "site 'hamburg': 3 messages ended without an answer; the last: the program was killed",
    ) in reasons(failed)
    assert states(next(rounds))["hamburg"] == "took part"


def test_a_site_that_comes_back_with_another_version_is_refused_until_it_is_back_with_the_right_one(link: LocalLink):
    rounds = rounds_of(ALL, link)
    next(rounds)
    hamburg = link.sites["hamburg"]
    program = hamburg.handler
    assert isinstance(program, SiteProgram)
    program.described = {"version": "0.9"}
    hamburg.restart()
    refused = next(rounds)
    expected = "the site has version '0.9' of fedelta, the server has '1.0'; install the same version"
    assert (states(refused)["hamburg"], of_site(refused, "hamburg").reason) == ("refused", expected)
    assert {rejection.cause for rejection in refused.rejections} == {"site refused"}
    num_asked = len(link.log)
    assert states(next(rounds))["hamburg"] == "refused"
    assert [site for site, _, _ in link.log[num_asked:]] == ["berlin"]
    program.described = {}
    hamburg.restart()
    assert states(next(rounds))["hamburg"] == "took part"


def test_a_site_that_has_forgotten_the_run_is_prepared_again(link: LocalLink):
    rounds = rounds_of(ALL, link)
    outcomes = [next(rounds)]
    program = link.sites["hamburg"].handler
    assert isinstance(program, SiteProgram)
    program.is_prepared = False
    outcomes += rounds
    assert_same(outcomes, simulated(ALL))


def test_a_site_that_comes_after_the_beginning_is_named_and_not_asked(link: LocalLink):
    rounds = rounds_of(ALL, link)
    next(rounds)
    link.sites["munich"] = replace(link.sites["berlin"])
    outcome = next(rounds)
    assert states(outcome)["munich"] == "refused"
    assert of_site(outcome, "munich").reason == (
        "it was not there when the run began; it takes part from the next run on"
    )
    assert link.asked("munich") == []


Change = Callable[[dict[str, Any], list[bytes]], None]


def set_in_first(**values: Any) -> Change:
    return lambda manifest, blobs: manifest["clients"][0].update(values)


def answer_twice(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    manifest["clients"][1] = manifest["clients"][0]


def leave_one_out(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    del manifest["clients"][0]


def spoil_all(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    for client in manifest["clients"]:
        client["num_examples"] = "many"


def damage(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    blobs[0] = blobs[0][:-1] + bytes([blobs[0][-1] ^ 1])


def swell(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    blobs[0] += bytes(10**6)


def changed(honest: Handler, change: Change) -> Handler:
    """A site whose answers to work are changed."""

    def dishonest(message: Message) -> Message:
        answer = honest(message)
        if answer.kind != "trained":
            return answer
        manifest = {**answer.manifest, "clients": [dict(client) for client in answer.manifest["clients"]]}
        blobs = [bytes(blob) for blob in answer.blobs]
        change(manifest, blobs)
        return Message(answer.kind, manifest, blobs)

    return dishonest


WHOLE = {2, 3}  # both clients of the site are lost
FIRST = {3}  # it has more rows than client 2
ODD: dict[str, tuple[Change, set[int], str]] = {
    "a client of another site": (set_in_first(id=0), WHOLE, "none of the clients that it was asked for"),
    "a client as text": (set_in_first(id="2"), WHOLE, "none of the clients that it was asked for"),
    "another round": (lambda manifest, blobs: manifest.update(round=7), WHOLE, "it answers for round 7, expected 2"),
    "no list": (lambda manifest, blobs: manifest.update(clients={}), WHOLE, "no list of at most 2 clients"),
    "a client twice": (answer_twice, WHOLE, ""),
    "a client left out": (leave_one_out, FIRST, "its site has answered without this client"),
    "no such blob": (set_in_first(blob=5), FIRST, "`blob` is 5, expected the index of one of 2 blobs"),
    "a negative blob": (set_in_first(blob=-1), FIRST, "`blob` is -1"),
    "a blob that is no number": (set_in_first(blob=True), FIRST, "`blob` is True"),
    "a version of the future": (set_in_first(version=9), FIRST, "`version` is 9, expected 0 or 2"),
    "a damaged payload": (damage, FIRST, "is truncated or damaged: its checksum is wrong"),
    "an oversized payload": (swell, FIRST, "more than the"),
    "claims of both that are no numbers": (spoil_all, WHOLE, "the client claims 'many' examples"),
    "a claim that is no number": (set_in_first(num_examples="many"), FIRST, "the client claims 'many' examples"),
    "a loss that is a list": (set_in_first(train_loss=[1]), FIRST, "the client's metric `train_loss` is [1]"),
    "a fault that is no table": (set_in_first(fault="ill"), FIRST, "its site gives no reason"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_answer_that_cannot_be_used_costs_no_other_site_anything(link: LocalLink, kind: str):
    change, lost, text = ODD[kind]
    rounds = rounds_of(ALL, link)
    next(rounds)
    honest = link.sites["hamburg"].handler
    link.sites["hamburg"].handler = changed(honest, change)
    outcome = next(rounds)
    assert {rejection.client_id for rejection in outcome.rejections} == lost
    assert text in outcome.rejections[0].reason
    assert (of_site(outcome, "berlin").num_accepted, of_site(outcome, "hamburg").num_accepted) == (2, 2 - len(lost))
    # The record must not say that a site took part of which nothing is in the mean.
    assert states(outcome) == {"berlin": "took part", "hamburg": "failed" if lost == WHOLE else "took part"}
    link.sites["hamburg"].handler = honest
    assert not next(rounds).rejections


def test_the_end_of_a_run_waits_for_no_site_that_hangs(link: LocalLink):
    remote = remote_of(ALL, link)
    link.sites["hamburg"].seconds = 10**6
    began = link.seconds
    remote.finish()
    assert SETTINGS.min_grace_seconds <= link.seconds - began < SETTINGS.min_grace_seconds + 1
    assert [len(link.asked(site, "finish")) for site in AT] == [1, 1]


DEMANDING = Small(FedAvg(clients_per_round=4, num_rounds=3, min_replies=4))


def test_what_one_site_sends_ends_no_run_that_needs_all_its_clients():
    link = link_of(DEMANDING)
    honest = link.sites["hamburg"].handler
    link.sites["hamburg"].handler = changed(honest, damage)
    rounds = rounds_of(DEMANDING, link)
    first = next(rounds)
    assert {rejection.cause for rejection in first.rejections} == {"refused", "void round"}
    assert first.num_examples == 0
    link.sites["hamburg"].handler = honest
    assert next(rounds).num_examples == sum(ROWS)


def test_a_run_in_which_nobody_at_no_site_can_train_any_more_ends():
    link = link_of(DEMANDING)

    def diverge(manifest: dict[str, Any], blobs: list[bytes]) -> None:
        for client in manifest["clients"]:
            client["fault"] = {"reason": "the loss is nan", "cause": "refused"}

    for site in link.sites.values():
        site.handler = changed(site.handler, diverge)
    with pytest.raises(RoundError, match=r"round 1: 0 of 4 replies are usable, .*\n.*the loss is nan"):
        next(rounds_of(DEMANDING, link))


FORGETFUL = {
    # In round 3 FedLAMA leaves groups adrift that travel in round 4.
    "fedlama": (FedLama(clients_per_round=4, num_rounds=4, phi=2, tau=2), 3),
    "scaffold": (Scaffold(clients_per_round=4, num_rounds=4), 1),
}


@pytest.mark.parametrize("name", FORGETFUL)
def test_a_site_that_lost_its_disk_gets_everything_in_the_same_round(name: str):
    strategy, lost_after = FORGETFUL[name]
    small = Small(strategy)
    link = link_of(small)
    rounds = rounds_of(small, link)
    first = next(rounds)
    for _ in range(lost_after - 1):
        next(rounds)
    program = link.sites["hamburg"].handler
    assert isinstance(program, SiteProgram)
    assert program.versions
    program.versions.clear()
    outcome = next(rounds)
    assert outcome.rejections == ()
    [whole] = [t.payload_bytes for t in first.transfers if t.direction == "down" and t.client_id == 2]
    by_client = {
        client: [t.payload_bytes for t in outcome.transfers if (t.direction, t.client_id) == ("down", client)]
        for client in (0, 2)
    }
    assert len(by_client[0]) == 1
    assert len(by_client[2]) == 2
    assert by_client[2][1] == whole
    assert of_site(outcome, "hamburg").num_accepted == 2
    assert len(list(rounds)) == 4 - lost_after - 1
    assert len(link.asked("hamburg")) == 5
