"""The authority of a server and its certificate, for TLS; and what is wrong with those that are there.

The authority signs this server's certificate only. Sites get the authority's certificate once and keep it, so a new
server certificate needs nothing at the sites.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedelta.durable import write_atomic, write_secret
from fedelta.errors import InputError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 730
_LOOPBACK = ("localhost", "127.0.0.1")
# The clock of a site may be behind; its node key works up to five minutes.
_EARLIER = timedelta(days=1)


@dataclass(frozen=True)
class Certificates:
    """The files of a server's TLS.

    Args:
        folder: holds them all; only its owner reads it.
    """

    folder: Path

    @property
    def authority(self) -> Path:
        """The authority's certificate, which every site gets."""
        return self.folder / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Signs a new server certificate; `server run` does not need it."""
        return self.folder / "ca.key"

    @property
    def server(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.crt"

    @property
    def server_key(self) -> Path:
        """The key of the server's certificate."""
        return self.folder / "server.key"


def create(files: Certificates, host: str) -> None:
    """Makes an authority for `AUTHORITY_DAYS` days, and the certificate of `host` that it signs."""
    key = generate_private_key(SECP256R1())
    name = _name(f"fedelta authority of {host}")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _dated(name, name, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    write_secret(files.authority_key, _pem(key))
    write_atomic(files.authority, builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    renew(files, host)


def renew(files: Certificates, host: str) -> None:
    """Makes a new certificate of `host` for `SERVER_DAYS` days with the authority that is there.

    Raises:
        InputError: the authority is missing, damaged or has expired.
    """
    authority, authority_key = _read(files.authority), _read_key(files.authority_key)
    _refuse_expired(files.authority, authority, "make a new server folder; every site needs its new `ca.crt`.")
    key = generate_private_key(SECP256R1())
    names = [_alternative(name) for name in dict.fromkeys((host, *_LOOPBACK))]
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = (
        _dated(_name(host), authority.subject, key, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer_key, critical=False)
    )
    write_secret(files.server_key, _pem(key))
    write_atomic(files.server, builder.sign(authority_key, SHA256()).public_bytes(Encoding.PEM))


def check(files: Certificates, host: str) -> timedelta:
    """How long the server's certificate is still valid.

    Raises:
        InputError: a file is missing or damaged, they do not belong together, the certificate has expired, or it is not
            that of `host`.
    """
    advice = "`fedelta server init HUB --renew` makes a new one; sites need nothing."
    authority, server = _read(files.authority), _read(files.server)
    _refuse_expired(files.server, server, advice)
    _refuse_expired(files.authority, authority, "make a new server folder; every site needs its new `ca.crt`.")
    if _public(_read_key(files.server_key).public_key()) != _public(server.public_key()):
        raise InputError(f"{str(files.server_key)!r} is not the key of certificate {str(files.server)!r}.", hint=advice)
    try:
        server.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise InputError(
            f"certificate {str(files.server)!r} is not signed by {str(files.authority)!r}.", hint=advice
        ) from error
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if _alternative(host) not in list(names):
        known = [str(name.value) for name in names]
        raise InputError(f"certificate {str(files.server)!r} is for {known}, not for {host!r}.", hint=advice)
    return server.not_valid_after_utc - datetime.now(UTC)


def _dated(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    """A certificate with everything that all have."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"certificate {str(path)!r} is missing.", hint="`fedelta server init` makes it.") from error
    except ValueError as error:
        raise InputError(f"{str(path)!r} is no certificate: {error}", hint="bring it back from a copy.") from error


def _read_key(path: Path) -> EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError as error:
        raise InputError(f"key {str(path)!r} is missing.", hint="bring it back from a copy.") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{str(path)!r} is no private key: {error}", hint="bring it back from a copy.") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise InputError(f"{str(path)!r} is not the key that `fedelta server init` made.", hint="bring that one back.")
    return key


def _refuse_expired(path: Path, certificate: x509.Certificate, advice: str) -> None:
    now, end = datetime.now(UTC), certificate.not_valid_after_utc
    if now >= end:
        raise InputError(f"certificate {str(path)!r} expired on {end:%Y-%m-%d}.", hint=advice)
    if now < certificate.not_valid_before_utc:
        raise InputError(
            f"certificate {str(path)!r} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and this "
            f"machine's clock says {now:%Y-%m-%d %H:%M} UTC.",
            hint="set the clock.",
        )
