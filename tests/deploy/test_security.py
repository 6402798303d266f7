"""What a registered site, with its key and the server's certificate in hand, can and cannot do at the public port.

Everything is tried over Flower's own clients, so that a refusal is the server's, not that of a wrong request.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from tests.deploy.harness import SUPEREXEC, Federation

from fedelta.deployment.server.hub import Hub
from fedelta.runtimes.flower.control import Control

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]

ClientT = TypeVar("ClientT", bound=ProtobufClient)


@pytest.fixture
def key(federation: Federation) -> EllipticCurvePrivateKey:
    """The private key of the registered site hamburg."""
    (path,) = [path for path in federation.sites["hamburg"].path.iterdir() if _is_private_key(path)]
    key = load_ssh_private_key(path.read_bytes(), password=None)
    assert isinstance(key, EllipticCurvePrivateKey)
    return key


@pytest.fixture
def connect(federation: Federation, key: EllipticCurvePrivateKey) -> Iterator[Callable[..., Any]]:
    """Makes a client of one of Flower's interfaces, at the public port by default, that signs as the site does."""
    clients: list[ProtobufClient] = []

    def make(kind: type[ClientT], address: str = "", signer: EllipticCurvePrivateKey = key) -> ClientT:
        authority = (federation.hub / "tls" / "ca.crt").read_bytes()
        signed = [NodeAuthHttpInterceptor(signer, signer.public_key())]
        client = kind.from_server_address(address or f"127.0.0.1:{federation.port}", False, authority, signed)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("call", "request_"),
    [
        ("StartRun", StartRunRequest()),
        ("StopRun", StopRunRequest(run_id=1)),
        ("ListRuns", ListRunsRequest()),
        ("ListNodes", ListNodesRequest()),
        ("RegisterNode", RegisterNodeRequest(public_key=b"key")),
    ],
)
def test_a_registered_site_cannot_submit_a_run_or_reach_the_operators_interface(
    connect: Callable[..., Any], call: str, request_: object
):
    assert _status(lambda: getattr(connect(ControlHttpClient), call)(request_)) == 404


@pytest.mark.parametrize(
    ("call", "request_"),
    [
        ("AcquireTask", AcquireTaskRequest(supported_task_types=["flwr-serverapp"])),
        ("PullTaskInput", PullTaskInputRequest()),
        ("GetNodes", GetNodesRequest()),
        ("PushMessages", PushAppMessagesRequest()),
        ("PullMessages", PullAppMessagesRequest()),
    ],
)
def test_a_registered_site_cannot_take_a_server_task_or_speak_for_the_server(
    connect: Callable[..., Any], call: str, request_: object
):
    assert _status(lambda: getattr(connect(RuntimeHttpClient), call)(request_)) == 404


@pytest.mark.parametrize(
    ("call", "request_"),
    [("RegisterNode", RegisterNodeFleetRequest(public_key=b"key")), ("UnregisterNode", UnregisterNodeFleetRequest())],
)
def test_a_registered_site_cannot_change_who_is_registered(connect: Callable[..., Any], call: str, request_: object):
    assert _status(lambda: getattr(connect(FleetHttpClient), call)(request_)) == 404


def test_on_the_servers_machine_runs_and_tasks_need_the_secret(federation: Federation, connect: Callable[..., Any]):
    address = _superlink(federation)
    task = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
    assert _status(lambda: connect(RuntimeHttpClient, address).AcquireTask(task)) == 401
    assert _status(lambda: connect(ControlHttpClient, address).StartRun(StartRunRequest())) == 401
    assert _status(lambda: connect(ControlHttpClient, address).ListRuns(ListRunsRequest())) == 401


def test_a_key_that_is_not_registered_is_refused(connect: Callable[..., Any], key: EllipticCurvePrivateKey):
    stranger = generate_private_key(SECP384R1())
    client = connect(FleetHttpClient, signer=stranger)
    own = ActivateNodeRequest(public_key=_pem(stranger), heartbeat_interval=30)
    assert _status(lambda: client.ActivateNode(own)) == 412  # of Flower: the node could not be activated
    # Nor does it help to name the key of another: the signature is not by that key.
    assert _status(lambda: client.ActivateNode(ActivateNodeRequest(public_key=_pem(key), heartbeat_interval=30))) == 401


def test_a_site_cannot_read_or_answer_the_messages_of_another_site(
    federation: Federation, connect: Callable[..., Any], key: EllipticCurvePrivateKey
):
    hub = Hub(federation.hub)
    control = Control.connect(_superlink(federation), hub.certificates, hub.secret)
    with control.client:
        numbers = {node.name: node.id for node in control.nodes()}
    client = connect(FleetHttpClient)
    # Of its own messages it may ask: the calls are right, and only the number makes the difference.
    assert list(client.PullMessages(PullMessagesRequest(node=Node(node_id=numbers["hamburg"]))).messages_list) == []
    other = Node(node_id=numbers["kiel"])
    assert _status(lambda: client.PullMessages(PullMessagesRequest(node=other))) == 401
    assert _status(lambda: client.PushMessages(PushMessagesRequest(node=other))) == 401


def test_the_public_port_speaks_tls_only_and_only_with_the_servers_certificate(federation: Federation):
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"http://127.0.0.1:{federation.port}/v1/fleet/pull-messages")
    trusting = ssl.create_default_context(cafile=str(federation.hub / "tls" / "ca.crt"))
    assert _handshake(federation.port, trusting) is None
    assert "CERTIFICATE_VERIFY_FAILED" in str(_handshake(federation.port, ssl.create_default_context()))


def test_flower_listens_on_loopback_only(federation: Federation):
    assert federation.server is not None
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in federation.server.tree()
        for connection in process.net_connections()
        if connection.status == "LISTEN"
    }
    host, _, port = _superlink(federation).partition(":")
    assert listening == {("127.0.0.1", federation.port), (host, int(port))}
    assert host == "127.0.0.1"


def test_secrets_are_neither_in_command_lines_nor_in_environments_nor_in_logs(federation: Federation):
    assert federation.server is not None
    site = federation.sites["hamburg"].path
    secrets = [_body(federation.hub / "tls" / name) for name in ("ca.key", "server.key")]
    secrets += [_body(path) for path in site.iterdir() if _is_private_key(path)]
    secrets.append((federation.hub / "state" / "secret").read_text())
    processes = federation.server.tree()
    public = [" ".join(process.cmdline()) for process in processes]
    public += [" ".join(process.environ().values()) for process in processes]
    logs = [*(federation.hub / "state" / "logs").rglob("*.log"), *federation.folder.glob("*.log")]
    public += [log.read_text(errors="replace") for log in logs]
    assert len(secrets) == 4
    assert not [secret for secret in secrets if any(secret in text for text in public)]


def test_keys_and_secrets_are_readable_for_their_owner_only(federation: Federation):
    site = federation.sites["hamburg"].path
    secret_files = [*(federation.hub / "tls").glob("*.key"), federation.hub / "state" / "secret"]
    secret_files += [path for path in site.iterdir() if _is_private_key(path)]
    assert [oct(path.stat().st_mode & 0o777) for path in secret_files] == ["0o600"] * 4
    folders = [federation.hub, federation.hub / "tls", federation.hub / "state", federation.hub / "state" / "logs"]
    assert {oct(path.stat().st_mode & 0o777) for path in folders} == {"0o700"}


def test_the_home_of_the_user_is_left_alone(federation: Federation):
    assert federation.server is not None
    homes = {process.environ().get("FLWR_HOME") for process in federation.server.part("flower-", "flwr-")}
    assert homes == {str(federation.hub / "state" / "flower")}


def _handshake(port: int, context: ssl.SSLContext) -> ssl.SSLError | None:
    """The error with which a handshake with the server ends, if it does."""
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1", do_handshake_on_connect=False) as encrypted,
    ):
        try:
            encrypted.do_handshake()
        except ssl.SSLError as error:
            return error
    return None


def _superlink(federation: Federation) -> str:
    """The address of the SuperLink, from the command line of its neighbour."""
    assert federation.server is not None
    (process,) = federation.server.part(SUPEREXEC)
    words = process.cmdline()
    return words[words.index("--runtime-api-address") + 1]


def _status(call: Callable[[], object]) -> int:
    """The HTTP status with which a call was refused; 200 if it was not."""
    try:
        call()
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 200


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    return public_key_to_bytes(key.public_key())


def _is_private_key(path: Path) -> bool:
    return path.is_file() and b"PRIVATE KEY" in path.read_bytes()[:100]


def _body(path: Path) -> str:
    """The second line of a key in a file: enough to recognise it anywhere."""
    return path.read_text().splitlines()[1]
