from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from fedelta.deployment.server import certificates
from fedelta.deployment.server.certificates import Certificates, check, create, renew
from fedelta.errors import InputError


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    create(Certificates(tmp_path), "hub.example.org")
    return Certificates(tmp_path)


def test_a_client_with_the_authority_trusts_the_server_by_its_name(files: Certificates):
    # A handshake in memory, as a site's program makes it.
    assert _handshake(files, "hub.example.org") is None
    assert _handshake(files, "127.0.0.1") is None


def test_a_client_does_not_trust_the_server_under_another_name(files: Certificates):
    assert "mismatch" in str(_handshake(files, "other.example.org"))


def test_a_client_with_another_authority_does_not_trust_the_server(files: Certificates, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other = Certificates(tmp_path / "other")
    create(other, "hub.example.org")
    files.authority.write_bytes(other.authority.read_bytes())
    assert "CERTIFICATE_VERIFY_FAILED" in str(_handshake(files, "hub.example.org"))


def test_keys_are_readable_for_their_owner_only(files: Certificates):
    assert {path.name: path.stat().st_mode & 0o777 for path in files.folder.glob("*.key")} == {
        "ca.key": 0o600,
        "server.key": 0o600,
    }


def test_a_renewed_certificate_is_trusted_by_those_who_have_the_authority(files: Certificates):
    authority = files.authority.read_bytes()
    renew(files, "new.example.org")
    assert files.authority.read_bytes() == authority
    assert _handshake(files, "new.example.org") is None


def test_what_is_left_is_told(files: Certificates):
    assert check(files, "hub.example.org").days == certificates.SERVER_DAYS - 1  # and nearly 24 hours


def test_the_key_of_another_certificate_is_refused(files: Certificates, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other = Certificates(tmp_path / "other")
    create(other, "hub.example.org")
    files.server_key.write_bytes(other.server_key.read_bytes())
    with pytest.raises(InputError, match="is not the key of certificate") as caught:
        check(files, "hub.example.org")
    assert "--renew" in str(caught.value.hint)


def test_a_certificate_of_another_authority_is_refused(files: Certificates, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other = Certificates(tmp_path / "other")
    create(other, "hub.example.org")
    files.authority.write_bytes(other.authority.read_bytes())
    with pytest.raises(InputError, match="is not signed by"):
        check(files, "hub.example.org")


def test_a_certificate_for_another_host_is_refused_with_both_names(files: Certificates):
    with pytest.raises(InputError, match=r"is for \['hub.example.org', .*\], not for 'moved.example.org'"):
        check(files, "moved.example.org")


def test_an_expired_certificate_is_refused_with_its_date(files: Certificates, monkeypatch: pytest.MonkeyPatch):
    end = x509.load_pem_x509_certificate(files.server.read_bytes()).not_valid_after_utc
    _set_clock(monkeypatch, end + timedelta(seconds=1))
    with pytest.raises(InputError, match=f"expired on {end:%Y-%m-%d}") as caught:
        check(files, "hub.example.org")
    assert "--renew" in str(caught.value.hint)


def test_a_clock_before_the_certificate_is_told(files: Certificates, monkeypatch: pytest.MonkeyPatch):
    _set_clock(monkeypatch, datetime.now(UTC) - timedelta(days=2))
    with pytest.raises(InputError, match="this machine's clock says"):
        check(files, "hub.example.org")


def test_an_expired_authority_renews_nothing(files: Certificates, monkeypatch: pytest.MonkeyPatch):
    _set_clock(monkeypatch, datetime.now(UTC) + timedelta(days=certificates.AUTHORITY_DAYS + 1))
    with pytest.raises(InputError, match="expired on") as caught:
        renew(files, "hub.example.org")
    assert "every site needs its new `ca.crt`" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("server.crt", None, "certificate .*server.crt' is missing"),
        ("server.crt", b"nonsense", "server.crt' is no certificate"),
        ("server.key", None, "key .*server.key' is missing"),
        ("server.key", b"nonsense", "server.key' is no private key"),
    ],
)
def test_files_that_are_missing_or_damaged_are_named(files: Certificates, name: str, content: bytes | None, text: str):
    (files.folder / name).unlink()
    if content is not None:
        (files.folder / name).write_bytes(content)
    with pytest.raises(InputError, match=text):
        check(files, "hub.example.org")


def _handshake(files: Certificates, host: str) -> ssl.SSLError | None:
    """A TLS handshake between a site and the server, without a network; the error of the site, if there is one."""
    accept = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accept.load_cert_chain(files.server, files.server_key)
    connect = ssl.create_default_context(cafile=str(files.authority))
    to_server, to_site = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = accept.wrap_bio(to_server, to_site, server_side=True)
    site = connect.wrap_bio(to_site, to_server, server_hostname=host)
    for _ in range(4):
        for end in (site, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                return error
    return None


def _set_clock(monkeypatch: pytest.MonkeyPatch, time: datetime) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return time

    monkeypatch.setattr(certificates, "datetime", Clock)
