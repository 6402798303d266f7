"""A site's connection against the Fleet API of the installed Flower, which runs in this process, without a network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from flwr.app import Message as Carrier
from flwr.app import RecordDict
from flwr.app.metadata import Metadata
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.main import create_app

from fedelta.deployment.site.diagnosis import KeyRefusedError
from fedelta.errors import InputError, LinkError, PayloadError
from fedelta.runtimes.flower import connection as connection_module
from fedelta.runtimes.flower import fleet as fleet_module
from fedelta.runtimes.flower.connection import Connection
from fedelta.runtimes.flower.envelope import unwrap, wrap
from fedelta.runtimes.flower.fleet import Fleet, ServerAddress
from fedelta.runtimes.remote.messages import REFUSED, Message

MAX_BYTES = 2**20
TRAIN = Message("train", {"round": 3}, (b"\x01\x02", b"\x03"))


@dataclass
class InProcess(httpx.BaseTransport):
    """Passes requests on to an application."""

    app: object
    failures: list[Exception | None] = field(default_factory=list)
    date: float | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        headers, content = asyncio.run(self._answer(request))
        return httpx.Response(headers[0], headers=headers[1], content=content)

    async def _answer(self, request: httpx.Request) -> tuple[tuple[int, dict[str, str]], bytes]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app)) as client:
            answer = await client.request(request.method, request.url, headers=request.headers, content=request.read())
        added = {} if self.date is None else {"date": formatdate(self.date, usegmt=True)}
        return (answer.status_code, {**answer.headers, **added}), answer.content


@dataclass
class Superlink:
    """The part of a SuperLink that sites talk to."""

    transport: InProcess
    state: LinkState

    def register(self, key: EllipticCurvePrivateKey) -> int:
        pem = public_key_to_bytes(key.public_key())
        return self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, pem, 0)

    def start_run(self) -> int:
        run = self.state.create_run("f", "1", "h", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
        (task,) = self.state.get_tasks(run_ids=[run])
        assert self.state.claim_task(task.task_id)
        assert self.state.activate_task(task.task_id)
        return run

    def send(self, node: int, records: RecordDict, run: int, ttl: float = 60.0) -> str:
        """Stores a message as a ServerApp's grid does, and returns its id."""
        metadata = Metadata(run, "", SUPERLINK_NODE_ID, node, "", "", time.time(), ttl, "query")
        message = Carrier(records, metadata=metadata)
        metadata.__dict__["_message_id"] = message.object_id
        session = self.state.start_session(run)
        stored, missing = self.state.store_message_and_object_tree(message, get_object_tree(message), session)
        assert stored
        for object_id, item in get_all_nested_objects(message).items():
            if object_id in missing:
                self.state.store_object(run, session, object_id, item.deflate())
        return message.object_id

    def answers(self, ticket: str, run: int) -> list[Message]:
        """Every answer to a message that came whole."""
        answers = []
        for bare in self.state.get_message_res({ticket}, run_id=run):
            tree = self.state.object_store.get_object_tree(bare.metadata.message_id)
            contents = {item: self.state.get_object(run, item) for item in _ids(tree)}
            whole = inflate_object_from_contents(tree.object_id, contents)
            answers.append(unwrap(whole.content, MAX_BYTES))
        return answers


def _ids(tree) -> Iterator[str]:
    for child in tree.children:
        yield from _ids(child)
    yield tree.object_id


@pytest.fixture
def key() -> EllipticCurvePrivateKey:
    return generate_private_key(SECP384R1())


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> Superlink:
    app = create_app()
    app.state.enable_supernode_auth = True
    transport = InProcess(app)
    client = httpx.Client(transport=transport)
    monkeypatch.setattr(fleet_module, "_trusting", lambda ca: None)
    monkeypatch.setattr(fleet_module.httpx, "get", lambda url, **options: client.get(url))
    return Superlink(transport, app.state.linkstate_factory.state())


@pytest.fixture
def connection(
    superlink: Superlink, key: EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Connection]:
    monkeypatch.setattr(fleet_module.FleetHttpClient, "from_server_address", _without_tls)
    fleet = Fleet(ServerAddress("fl.example.org:9443", b""), key)
    fleet.client._client = httpx.Client(transport=superlink.transport)
    connection = Connection(fleet, MAX_BYTES)
    yield connection
    connection._fleet.end()


def _without_tls(address: str, *, insecure: bool, root_certificates: bytes, interceptors: list) -> object:
    return fleet_module.FleetHttpClient(f"https://{address}", interceptors=interceptors)


def test_a_message_comes_and_its_answer_goes_back(superlink, connection, key):
    node, run = superlink.register(key), superlink.start_run()
    assert connection.join() == node
    assert connection.receive() is None
    ticket = superlink.send(node, wrap(TRAIN), run)

    delivery = connection.receive()
    assert (delivery.message.kind, delivery.message.manifest) == ("train", {"round": 3})
    assert [bytes(blob) for blob in delivery.message.blobs] == [b"\x01\x02", b"\x03"]
    assert connection.answer(delivery, Message("trained", {"round": 3}, (b"\x04" * 1000,)))

    (answer,) = superlink.answers(ticket, run)
    assert (answer.kind, bytes(answer.blobs[0])) == ("trained", b"\x04" * 1000)
    assert connection.receive() is None


def test_a_key_that_is_not_registered_is_refused(superlink, connection):
    with pytest.raises(KeyRefusedError, match="does not accept this site's key"):
        connection.join()


def test_a_key_that_is_removed_while_the_site_waits_is_refused(superlink, connection, key):
    node = superlink.register(key)
    connection.join()
    superlink.state.delete_node(NOOP_FLWR_AID, node)
    with pytest.raises(KeyRefusedError, match="does not accept this site's key"):
        connection.receive()


def test_a_site_that_was_killed_joins_again_at_once_where_it_knows_its_number(superlink, connection, key):
    node = superlink.register(key)
    connection.join()
    with pytest.raises(KeyRefusedError):  # as Flower's own program would be, for up to a minute
        connection.join()
    assert connection.join(previous=node) == node


def test_a_site_that_leaves_is_known_to_be_away_at_once(superlink, connection, key):
    superlink.register(key)
    connection.join()
    connection.leave()
    assert [node.status for node in superlink.state.get_node_info()] == ["offline"]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_by_an_hour_shuts_nobody_out(superlink, connection, key, hours):
    node, run = superlink.register(key), superlink.start_run()
    right = time.time
    superlink.transport.date = right()
    fleet_module.time = connection_module.time = Clock(hours * 3600)
    try:
        assert connection.join() == node
        assert connection.clock_offset == pytest.approx(-hours * 3600, abs=5)
        ticket = superlink.send(node, wrap(TRAIN), run)
        assert connection.answer(connection.receive(), Message("trained"))
    finally:
        fleet_module.time = connection_module.time = time
    assert superlink.answers(ticket, run)[0].kind == "trained"


def test_a_clock_that_is_set_in_mid_run_costs_nothing(superlink, connection, key):
    superlink.register(key)
    superlink.transport.date = time.time()
    connection.join()
    fleet_module.time = Clock(-3600)
    try:
        assert connection.receive() is None
        assert connection.clock_offset == pytest.approx(3600, abs=5)
    finally:
        fleet_module.time = time


@dataclass
class Clock:
    """The module `time` of a machine whose clock is so many seconds ahead."""

    ahead: float

    def time(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic()


def test_an_answer_after_its_time_is_reported_as_not_wanted(superlink, connection, key):
    node, run = superlink.register(key), superlink.start_run()
    connection.join()
    superlink.send(node, wrap(TRAIN), run, ttl=0.2)
    delivery = connection.receive()
    time.sleep(0.25)
    assert not connection.answer(delivery, Message("trained"))


def test_an_answer_to_a_run_that_is_over_is_reported_as_not_wanted(superlink, connection, key):
    node, run = superlink.register(key), superlink.start_run()
    connection.join()
    superlink.send(node, wrap(TRAIN), run)
    delivery = connection.receive()
    superlink.state.stop_run(run)
    assert not connection.answer(delivery, Message("trained"))


def test_a_message_that_is_too_large_is_refused_and_the_server_is_told(superlink, connection, key, monkeypatch):
    node, run = superlink.register(key), superlink.start_run()
    connection.join()
    monkeypatch.setattr("fedelta.runtimes.flower.connection._MANIFEST_BYTES", 0)
    ticket = superlink.send(node, wrap(Message("train", {}, (b"\x01" * (MAX_BYTES + 1),))), run)
    with pytest.raises(PayloadError, match="larger than the 1048576 bytes allowed"):
        connection.receive()
    (answer,) = superlink.answers(ticket, run)
    assert answer.kind == REFUSED
    assert "larger than" in answer.manifest["reason"]


def test_a_message_of_another_program_is_refused_and_the_server_is_told(superlink, connection, key):
    node, run = superlink.register(key), superlink.start_run()
    connection.join()
    ticket = superlink.send(node, RecordDict(), run)
    with pytest.raises(PayloadError, match="expected"):
        connection.receive()
    assert superlink.answers(ticket, run)[0].kind == REFUSED


def test_a_server_that_is_away_is_a_link_error(superlink, connection, key):
    superlink.register(key)
    connection.join()
    superlink.transport.failures = [httpx.ConnectError("[Errno 111] Connection refused")]
    with pytest.raises(LinkError, match=r"cannot be reached: .*Connection refused"):
        connection.receive()


def test_a_transfer_goes_on_when_the_server_is_back(superlink, connection, key, monkeypatch):
    node, run = superlink.register(key), superlink.start_run()
    connection.join()
    ticket = superlink.send(node, wrap(TRAIN), run)
    delivery = connection.receive()
    monkeypatch.setattr(connection._fleet, "pause", lambda seconds: False)
    superlink.transport.failures = [httpx.ReadTimeout(""), None, httpx.ConnectError("refused")]
    assert connection.answer(delivery, Message("trained"))
    assert superlink.answers(ticket, run)[0].kind == "trained"


def test_an_answer_of_which_the_server_forgot_a_part_is_sent_again(superlink, connection, key, monkeypatch):
    node, run = superlink.register(key), superlink.start_run()
    connection.join()
    ticket = superlink.send(node, wrap(TRAIN), run)
    delivery = connection.receive()
    store, num_calls = superlink.state.store_object, []

    def forgetful(*arguments: object) -> bool:
        num_calls.append(1)
        return len(num_calls) != 2 and store(*arguments)

    monkeypatch.setattr(superlink.state, "store_object", forgetful)
    assert connection.answer(delivery, Message("trained", {}, (b"\x04" * 1000,)))
    assert bytes(superlink.answers(ticket, run)[0].blobs[0]) == b"\x04" * 1000


def test_a_server_that_never_takes_an_answer_is_a_link_error(superlink, connection, key, monkeypatch):
    node, run = superlink.register(key), superlink.start_run()
    connection.join()
    superlink.send(node, wrap(TRAIN), run)
    delivery = connection.receive()
    monkeypatch.setattr(superlink.state, "store_object", lambda *arguments: False)
    monkeypatch.setattr(connection._fleet, "pause", lambda seconds: False)
    with pytest.raises(LinkError, match="does not take the parts of the answer"):
        connection.answer(delivery, Message("trained"))


def test_a_web_server_that_is_no_fedelta_server_is_named(superlink, connection, key):
    connection._fleet.client._base_url += "/elsewhere"
    message = r"what answers at fl.example.org:9443 is no fedelta server \(HTTP status 404\)"
    with pytest.raises(InputError, match=message):
        connection.receive()


def test_the_heart_beats_until_the_site_leaves_and_faster_while_the_server_is_away(superlink, connection, key):
    superlink.register(key)
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        superlink.transport.failures = [httpx.ConnectError("refused")] if len(pauses) == 2 else []
        return len(pauses) == 4

    connection._fleet.pause = pause
    connection.join()
    connection._heart.join(10)
    assert pauses == [2.5, 2.5, 1.0, 2.5]


def test_an_answer_of_which_the_server_has_only_the_beginning_is_lost_not_unwanted(
    superlink, connection, key, monkeypatch
):
    # The first request to store the answer arrives, but not the reply to it; the ServerApp then asks for the answer,
    # whereupon the SuperLink forgets the message and takes no answer any more.
    node, run = superlink.register(key), superlink.start_run()
    connection.join()
    ticket = superlink.send(node, wrap(TRAIN), run)
    delivery = connection.receive()
    handle = superlink.transport.handle_request

    def lose_reply(request: httpx.Request) -> httpx.Response:
        reply = handle(request)
        if request.url.path.endswith("/push-messages"):
            monkeypatch.setattr(superlink.transport, "handle_request", handle)
            superlink.state.delete_messages({ticket})
            raise httpx.ReadTimeout("timed out")
        return reply

    monkeypatch.setattr(superlink.transport, "handle_request", lose_reply)
    with pytest.raises(LinkError, match="only the beginning of the answer"):
        connection.answer(delivery, Message("trained"))
