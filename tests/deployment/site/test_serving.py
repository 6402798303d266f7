"""The life of a site, with a server that does what the test says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedelta.deployment.site import serving
from fedelta.deployment.site.diagnosis import KeyRefusedError
from fedelta.deployment.site.serving import SiteLoop, answer_line, request_line
from fedelta.deployment.site.session import Session
from fedelta.errors import FedeltaError, InputError, LinkError, PayloadError
from fedelta.runtimes.remote.messages import REFUSED, Message

AWAY = LinkError("the server cannot be reached: refused.")
NO_KEY = KeyRefusedError("the server does not accept this site's key.")


class EndError(Exception):
    """Ends a test."""


@dataclass
class Delivery:
    message: Message


@dataclass
class Door:
    """Gives what the test lists, one item for each call: an error to raise, or the value; then ends."""

    joins: list[object]
    messages: list[object] = field(default_factory=list)
    wanted: list[object] = field(default_factory=list)
    clock_offset: float = 0.0
    previous: list[int | None] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)

    def join(self, previous: int | None = None) -> int:
        self.previous.append(previous)
        return _next(self.joins)

    def receive(self) -> Delivery | None:
        message = _next(self.messages)
        return None if message is None else Delivery(message)

    def answer(self, delivery: Delivery, answer: Message) -> bool:
        self.sent.append(answer)
        return _next(self.wanted) if self.wanted else True


def _next(items: list) -> object:
    if not items:
        raise EndError
    item = items.pop(0)
    if isinstance(item, Exception):
        raise item
    return item


@dataclass
class Life:
    lines: list[str]
    pauses: list[float]
    door: Door


def live(folder: Path, door: Door, ask: Callable[[Message], Message] = lambda message: Message("answer")) -> Life:
    """Serves until the list of the test is used up."""
    life = Life([], [], door)
    server = SiteLoop(door, ask, Session(folder / "session.json"), life.lines.append, life.pauses.append)
    with pytest.raises(EndError):
        server.serve()
    return life


def test_a_message_is_answered_and_each_step_is_a_line(tmp_path):
    train = Message("train", {"round": 2, "clients": [{"id": 0}, {"id": 1}]})
    trained = Message(
        "trained",
        {"clients": [{"id": 0, "num_examples": 1500, "fault": None}, {"id": 1, "num_examples": 7, "fault": None}]},
        (b"xyz",),
    )
    life = live(tmp_path, Door([5], [None, train]), lambda message: trained)
    assert life.lines[:2] == ["joined; waiting for messages", "round 2: 2 clients to train"]
    assert life.lines[2].startswith("round 2: trained on 1,507 examples in 0.")
    assert life.lines[2].endswith("3 bytes go back")
    assert life.door.sent == [trained]


def test_what_is_wrong_at_first_ends_the_site(tmp_path):
    server = SiteLoop(Door([InputError("wrong certificate")]), Message, Session(tmp_path / "s"), print, lambda s: None)
    with pytest.raises(InputError, match="wrong certificate"):
        server.serve()


def test_once_joined_the_site_tries_for_ever_with_pauses_that_grow(tmp_path):
    expired = InputError("the certificate has expired.")
    life = live(tmp_path, Door([5, *[expired] * 8, 6], [NO_KEY]))
    assert life.lines == [
        "joined; waiting for messages",
        "the server does not accept this site's key any more",
        "the certificate has expired. Trying again.",
        "joined; waiting for messages",
    ]
    assert life.pauses == [1, 2, 4, 8, 10, 10, 10, 10]


def test_a_server_that_is_away_is_said_once_and_so_is_that_it_is_back(tmp_path):
    life = live(tmp_path, Door([AWAY, AWAY, 5], [AWAY, AWAY, AWAY, None, AWAY]))
    assert life.lines == [
        "the server cannot be reached: refused. Trying again.",
        "joined; waiting for messages",
        "the server cannot be reached: refused. Trying again.",
        "the server is reached again",
        "the server cannot be reached: refused. Trying again.",
    ]


def test_an_unregistered_site_waits_and_says_what_to_do(tmp_path):
    life = live(tmp_path, Door([NO_KEY, NO_KEY, 5]))
    assert len(life.lines) == 2
    assert "the server's operator copies this site's .pub file to HUB/sites" in life.lines[0]
    assert life.pauses == [10, 10]


def test_a_killed_process_hands_its_session_to_the_next_one(tmp_path):
    live(tmp_path, Door([5]))
    assert live(tmp_path, Door([5])).door.previous == [5]


def test_a_wrong_clock_is_said(tmp_path):
    life = live(tmp_path, Door([5], clock_offset=3600.0))
    assert life.lines[0].startswith("this machine's clock is 1 h 0 min behind the server's.")


def test_an_error_becomes_a_refusal_with_its_reason(tmp_path):
    def ask(message: Message) -> Message:
        raise FedeltaError("the worker died three times.", hint="see its log.")

    life = live(tmp_path, Door([5], [Message("prepare")]), ask)
    assert life.door.sent == [Message(REFUSED, {"reason": "the worker died three times.", "hint": "see its log."})]
    assert life.lines[-1] == "refused: the worker died three times. (see its log.)"


def test_an_error_of_the_operating_system_becomes_a_refusal_too(tmp_path):
    def ask(message: Message) -> Message:
        raise OSError(12, "Cannot allocate memory")

    life = live(tmp_path, Door([5], [Message("prepare"), None]), ask)
    assert life.lines[-1] == "refused: the site cannot work: Cannot allocate memory (see the site's log.)"


def test_a_full_disk_does_not_keep_a_site_from_joining(tmp_path):
    assert live(tmp_path / "missing", Door([5])).lines == ["joined; waiting for messages"]


def test_an_answer_that_came_too_late_is_said(tmp_path):
    life = live(tmp_path, Door([5], [Message("finish")], [False]))
    assert life.lines[-1] == "the server did not wait for this answer; the site takes part again in the next round"


def test_an_answer_that_took_long_to_deliver_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "_SLOW_SECONDS", -1.0)
    life = live(tmp_path, Door([5], [Message("finish")]))
    assert life.lines[-1] == "the answer took 0 s to deliver"


def test_after_an_answer_that_was_not_delivered_the_site_joins_anew_so_that_it_is_asked_again(tmp_path):
    life = live(tmp_path, Door([5, 5], [Message("finish"), None], [AWAY]))
    assert life.lines[-2:] == [
        "the answer was not delivered: the server cannot be reached: refused. Joining anew.",
        "joined; waiting for messages",
    ]
    assert life.door.previous == [None, 5]


def test_a_message_that_cannot_be_read_is_said_and_the_site_goes_on(tmp_path):
    life = live(tmp_path, Door([5], [PayloadError("damaged."), Message("finish")]))
    assert life.lines[1:3] == ["a message was refused: damaged.", "the run is over"]


def test_waiting_for_messages_starts_quickly(tmp_path):
    assert live(tmp_path, Door([5], [None, None])).pauses == [0.3, 0.3]


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (Message("describe"), "the server asks which clients are here"),
        (Message("prepare"), "a run begins: model and data are loaded"),
        (Message("train", {"round": 1, "clients": [{}]}), "round 1: 1 client to train"),
        (Message("train", {"clients": 7}), "round None: 0 clients to train"),
        (Message("evaluate", {"round": 4}), "round 4: the model is measured on this site's data"),
        (Message("boom"), "the server asks for 'boom'"),
    ],
)
def test_every_kind_of_message_has_its_line(request_, line):
    assert request_line(request_) == line


def test_faults_of_clients_are_in_the_line_of_their_round():
    request = Message("train", {"round": 1})
    fault = {"id": 4, "num_examples": 9, "fault": {"reason": "no space left", "cause": "disk"}}
    answer = Message("trained", {"clients": [{"id": 3, "num_examples": 20, "fault": None}, fault]})
    line = answer_line(request, answer, 2.0)
    assert line == "round 1: trained on 20 examples in 2.0 s, 0 bytes go back; client 4: no space left"
