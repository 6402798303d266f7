"""The link over a grid that a test makes: what it sends, and what it makes of Flower's answers."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Error, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.supercore.task_identity import TaskIdentity

from fedelta.errors import LinkError
from fedelta.runtimes.flower import link as flower_link
from fedelta.runtimes.flower.envelope import unwrap, wrap
from fedelta.runtimes.flower.link import GridLink
from fedelta.runtimes.remote.link import Presence, Receipt
from fedelta.runtimes.remote.messages import Message

HAMBURG, KIEL = 11, 12


@dataclass
class Grid:
    """What a `GridLink` needs of a grid."""

    nodes: list[SimpleNamespace]
    is_up: bool = True
    takes: bool = True
    sent: list[FlowerMessage] = field(default_factory=list)
    answers: dict[str, FlowerMessage | Exception] = field(default_factory=dict)
    unfinished: dict[str, threading.Event] = field(default_factory=dict)

    def get_nodes(self) -> list[SimpleNamespace]:
        if not self.is_up:
            raise httpx.ConnectError("refused")
        return self.nodes

    def push_messages(self, messages: Iterable[FlowerMessage]) -> list[str | None]:
        self.sent += messages
        return [f"ticket-{len(self.sent)}" if self.takes else None]

    def pull_messages(self, message_ids: Iterable[str]) -> list[FlowerMessage]:
        """As Flower does, it gives nothing at all if one of the answers cannot be read."""
        for ticket in message_ids:
            if ticket in self.unfinished:
                self.unfinished[ticket].wait(10)
        answers = [self.answers.pop(ticket) for ticket in message_ids if ticket in self.answers]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [answer for answer in answers if not isinstance(answer, Exception)]


@pytest.fixture(autouse=True)
def _inside_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages can be made inside of its tasks only."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """Two sites are registered, `hamburg` and `kiel`; only the first is connected."""
    nodes = [_node(tmp_path, "hamburg", HAMBURG)]
    _node(tmp_path, "kiel", KIEL)
    return Grid(nodes)


@pytest.fixture
def link(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GridLink:
    monkeypatch.setattr(flower_link, "_PULL_SECONDS", 0.1)
    return GridLink(grid, tmp_path, max_bytes=1000)  # type: ignore[arg-type]


def test_every_registered_site_is_known_by_name_whether_it_is_connected_or_not(link: GridLink):
    assert link.presence() == {"hamburg": Presence(True, "2026-11-28T10:00:00"), "kiel": Presence(False)}


def test_a_node_whose_key_is_not_registered_is_no_site(link: GridLink, tmp_path: Path):
    (tmp_path / "hamburg.pub").unlink()
    assert set(link.presence()) == {"kiel"}


def test_a_message_goes_to_the_node_with_the_key_of_the_site(link: GridLink, grid: Grid):
    ticket = link.send("hamburg", Message("train", {"round": 2}, [b"abc"]), seconds=90)
    (sent,) = grid.sent
    assert ticket == "ticket-1"
    assert (sent.metadata.dst_node_id, sent.metadata.ttl, sent.metadata.message_type) == (HAMBURG, 90, "query")
    assert unwrap(sent.content, 1000).manifest == {"round": 2}


def test_a_site_that_is_not_connected_gets_no_message(link: GridLink):
    with pytest.raises(LinkError, match="site 'kiel' is not connected"):
        link.send("kiel", Message("train"), seconds=90)


def test_a_site_that_was_registered_anew_is_found_under_its_new_number(link: GridLink, grid: Grid):
    link.presence()
    grid.takes = False
    with pytest.raises(LinkError, match="does not take a message to site 'hamburg'"):
        link.send("hamburg", Message("train"), seconds=90)
    grid.takes, grid.nodes[0].node_id = True, 99
    link.send("hamburg", Message("train"), seconds=90)
    assert grid.sent[-1].metadata.dst_node_id == 99


def test_an_answer_is_told_by_its_ticket(link: GridLink, grid: Grid):
    grid.answers["ticket-7"] = _answer("ticket-7", wrap(Message("trained", {"round": 2}, [b"xyz"])))
    (receipt,) = link.receive(["ticket-7", "ticket-8"])
    assert (receipt.ticket, receipt.failure) == ("ticket-7", "")
    assert receipt.answer is not None
    assert (receipt.answer.kind, bytes(receipt.answer.blobs[0])) == ("trained", b"xyz")
    assert receipt.num_bytes > 128 + 3


def test_an_answer_that_says_it_is_for_another_message_is_a_failure_of_the_site_that_was_asked(
    link: GridLink, grid: Grid
):
    grid.answers["ticket-7"] = _answer("ticket-8", wrap(Message("trained")))
    (receipt,) = link.receive(["ticket-7", "ticket-8"])
    assert (receipt.ticket, receipt.answer) == ("ticket-7", None)
    assert "is for another message" in receipt.failure


def test_an_answer_that_flower_cannot_read_costs_no_other_site_its_own(link: GridLink, grid: Grid):
    grid.answers["ticket-6"] = _answer("ticket-6", wrap(Message("trained")))
    grid.answers["ticket-7"] = ValueError("Error parsing message")
    grid.answers["ticket-8"] = _answer("ticket-8", wrap(Message("trained")))
    receipts = link.receive(["ticket-6", "ticket-7", "ticket-8"])
    assert [receipt.ticket for receipt in receipts if receipt.answer is not None] == ["ticket-6", "ticket-8"]
    (unread,) = (receipt.failure for receipt in receipts if receipt.answer is None)
    assert unread == "the site's answer cannot be read: an error of the kind ValueError"


def test_an_answer_that_has_come_in_part_only_keeps_no_other_site_waiting(link: GridLink, grid: Grid):
    rest = threading.Event()
    grid.answers["ticket-6"] = _answer("ticket-6", wrap(Message("trained", {"round": 6})))
    grid.answers["ticket-7"] = _answer("ticket-7", wrap(Message("trained", {"round": 7})))
    grid.unfinished["ticket-6"] = rest
    assert [receipt.ticket for receipt in link.receive(["ticket-6", "ticket-7"])] == ["ticket-7"]
    assert link.receive(["ticket-6"]) == []
    rest.set()
    receipts: list[Receipt] = []
    while not receipts:
        receipts += link.receive(["ticket-6"])
    assert receipts[0].answer is not None
    assert receipts[0].answer.manifest == {"round": 6}


def test_answers_that_have_come_are_kept_when_the_superlink_goes_away(link: GridLink, grid: Grid):
    grid.answers["ticket-6"] = _answer("ticket-6", wrap(Message("trained")))
    grid.answers["ticket-7"] = httpx.ConnectError("refused")
    (receipt,) = link.receive(["ticket-6", "ticket-7"])
    assert receipt.ticket == "ticket-6"
    grid.answers["ticket-7"] = httpx.ConnectError("refused")
    with pytest.raises(LinkError):
        link.receive(["ticket-7"])


def test_what_an_error_says_is_shown_in_one_line_without_commands_for_a_terminal(link: GridLink, grid: Grid):
    grid.answers["ticket-7"] = _answer("ticket-7", Error(2, "gone\n\x1b[2Jaway"))
    (receipt,) = link.receive(["ticket-7"])
    assert receipt.failure.endswith(": gone ?[2Jaway")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (5, "the site is not connected: gone"),
        (8, "process died while it worked: gone"),
        (77, "Flower's error 77: gone"),
    ],
)
def test_an_error_in_place_of_an_answer_is_a_failure_of_the_site_that_was_asked(
    link: GridLink, grid: Grid, code: int, text: str
):
    grid.answers["ticket-7"] = _answer("ticket-7", Error(code, "gone"))
    (receipt,) = link.receive(["ticket-7"])
    assert (receipt.ticket, receipt.answer) == ("ticket-7", None)
    assert text in receipt.failure


def test_an_answer_that_is_too_large_is_a_failure(link: GridLink, grid: Grid):
    grid.answers["ticket-7"] = _answer("ticket-7", wrap(Message("trained", {}, [bytes(1001)])))
    (receipt,) = link.receive(["ticket-7"])
    assert receipt.answer is None
    assert "the site's answer cannot be used: a message has 1129 bytes" in receipt.failure


def test_a_superlink_that_does_not_take_a_call_is_a_link_error(link: GridLink, grid: Grid):
    grid.is_up = False
    with pytest.raises(LinkError, match="SuperLink does not take a call: refused"):
        link.presence()


def test_nothing_is_asked_for_where_nothing_is_waited_for(link: GridLink, grid: Grid):
    grid.pull_messages = None  # type: ignore[method-assign, assignment]
    assert link.receive([]) == []


def _node(folder: Path, name: str, number: int) -> SimpleNamespace:
    """A connected node, whose key is registered in `folder`."""
    key = generate_private_key(SECP384R1()).public_key()
    (folder / f"{name}.pub").write_bytes(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return SimpleNamespace(node_id=number, public_key=pem, last_activated_at="2026-11-28T10:00:00")


def _answer(ticket: str, content: RecordDict | Error) -> FlowerMessage:
    message = FlowerMessage(content, dst_node_id=1, message_type="query") if isinstance(content, RecordDict) else None
    if message is None:
        request = FlowerMessage(RecordDict(), dst_node_id=1, message_type="query")
        message = FlowerMessage(content, reply_to=request)
    message.metadata.__dict__["_reply_to_message_id"] = ticket
    return message
