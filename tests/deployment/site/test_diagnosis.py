"""What a site says about its connection, with real handshakes on loopback."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedelta.deployment.site.diagnosis import KeyRefusedError, clock_offset, clock_problem, diagnosed
from fedelta.errors import FedeltaError, InputError, LinkError
from fedelta.runtimes.flower.fleet import Fleet, Server

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


class Authority:
    """Signs certificates."""

    def __init__(self) -> None:
        self.key = generate_private_key(SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(*[name in {5, 6} for name in range(9)])
        builder = self._builder(self.key, NOW - DAY, NOW + DAY).subject_name(self.name)
        builder = builder.add_extension(constraints, critical=True).add_extension(usage, critical=True)
        self.certificate = builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM)

    def context(
        self, folder: Path, host: str, start: datetime = NOW - DAY, end: datetime = NOW + DAY
    ) -> ssl.SSLContext:
        """For a server that this authority vouches for."""
        key = generate_private_key(SECP256R1())
        address = x509.DNSName(host) if host.isalpha() else x509.IPAddress(ip_address(host))
        builder = self._builder(key, start, end).subject_name(x509.Name([]))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=True)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "server.pem").write_bytes(pem + builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        return context

    def _builder(self, key: EllipticCurvePrivateKey, start: datetime, end: datetime) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().issuer_name(self.name).public_key(key.public_key())
        return builder.serial_number(7).not_valid_before(start).not_valid_after(end)


class Answers(BaseHTTPRequestHandler):
    """Answers with 404 and the time, as the proxy does."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


class Quiet(HTTPServer):
    """Keeps failed handshakes to itself."""

    def handle_error(self, request, client_address) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def serve() -> Iterator:
    servers = []

    def start(context: ssl.SSLContext | None) -> str:
        server = Quiet(("127.0.0.1", 0), Answers)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def look(address: str, ca: bytes) -> FedeltaError | None:
    """What a site says that asks the server for its time."""
    fleet = Fleet(Server(address, ca), generate_private_key(SECP256R1()))
    try:
        fleet.look()
    except FedeltaError as error:
        return error
    assert fleet.clock_offset == 0
    return None


pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


def test_nothing_is_wrong_with_a_server_that_its_authority_vouches_for(authority, serve, tmp_path):
    assert look(serve(authority.context(tmp_path, "127.0.0.1")), authority.certificate) is None


def test_a_certificate_of_another_authority_has_to_be_mended(authority, serve, tmp_path):
    error = look(serve(Authority().context(tmp_path, "127.0.0.1")), authority.certificate)
    assert isinstance(error, InputError)
    assert "is not from the authority in this site's `ca` file" in error.message


def test_an_expired_certificate_has_to_be_mended(authority, serve, tmp_path):
    context = authority.context(tmp_path, "127.0.0.1", NOW - 3 * DAY, NOW - 2 * DAY)
    error = look(serve(context), authority.certificate)
    assert isinstance(error, InputError)
    assert "has expired" in error.message
    assert f"{datetime.now(UTC):%Y-%m-%d}" in str(error.hint)


def test_a_certificate_of_the_future_points_to_the_clock(authority, serve, tmp_path):
    context = authority.context(tmp_path, "127.0.0.1", NOW + DAY, NOW + 2 * DAY)
    error = look(serve(context), authority.certificate)
    assert isinstance(error, InputError)
    assert "is not valid yet" in error.message
    assert "this machine's clock says" in str(error.hint)


@pytest.mark.parametrize("name", ["elsewhere", "127.0.0.9"])
def test_a_certificate_for_another_host_names_its_hosts(authority, serve, tmp_path, name):
    error = look(serve(authority.context(tmp_path, name)), authority.certificate)
    assert isinstance(error, InputError)
    assert error.message.endswith(f"is for '{name}'.")


def test_a_server_without_tls_is_not_the_one_that_is_meant(authority, serve):
    error = look(serve(None), authority.certificate)
    assert isinstance(error, InputError)
    assert "does not speak TLS" in error.message


def test_a_port_where_nothing_listens_may_pass_by_itself(authority, serve, tmp_path):
    error = look("127.0.0.1:9", authority.certificate)
    assert isinstance(error, LinkError)
    assert "cannot be reached" in error.message
    assert "refused" in error.message


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (401, KeyRefusedError, "does not accept this site's key"),
        (404, InputError, "is no fedelta server"),
        (413, LinkError, "larger than the server h:1 takes"),
        (502, LinkError, "answers with HTTP status 502"),
    ],
)
def test_a_status_is_told_in_words(status, kind, text):
    request = httpx.Request("POST", "https://h:1")
    error = diagnosed(httpx.HTTPStatusError("", request=request, response=httpx.Response(status)), "h:1")
    assert type(error) is kind
    assert text in error.message


def test_a_server_that_is_silent_may_pass_by_itself():
    error = diagnosed(httpx.ConnectTimeout(""), "h:1")
    assert type(error) is LinkError
    assert "does not answer in time" in error.message


def test_the_offset_of_a_clock_is_read_from_the_date():
    # 1970-01-01 00:16:40 is 1000 s; the answer came at 940 s here, so this clock is a minute behind
    assert clock_offset("Thu, 01 Jan 1970 00:16:40 GMT", 940.0) == 60.5
    assert clock_offset("Thu, 01 Jan 1970 00:16:40 GMT", 1002.0) == 0
    assert clock_offset(None, 940.0) == clock_offset("yesterday", 940.0) == 0


@pytest.mark.parametrize(
    ("offset", "text"), [(3600, "1 h 0 min behind"), (-3725, "1 h 2 min ahead of"), (95, "1 min 35 s behind")]
)
def test_a_wrong_clock_is_told_with_its_amount(offset, text):
    assert f"this machine's clock is {text} the server's" in str(clock_problem(offset))
    assert clock_problem(20) is None
