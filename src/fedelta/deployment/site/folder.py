"""The folder of a site: its key, its settings, and the certificate of the server's authority."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import tomli_w
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from fedelta.deployment.naming import client_numbers, host_and_port, site_name
from fedelta.durable import make_private, only_owner_may_read, write_atomic, write_secret
from fedelta.errors import InputError

SETTINGS, KEY, AUTHORITY = "site.toml", "site.key", "ca.crt"


@dataclass(frozen=True)
class Draft:
    """What is known of a site when its folder is made.

    Args:
        name: of the site; letters, digits, dots, hyphens and underscores.
        server: host:port of the server.
        source: value of `data.source`; None if the user is to write it.
        clients: value of `clients`; None if the data are the site's own.
    """

    name: str
    server: str
    source: str | None = None
    clients: str | None = None


def create(folder: Path, draft: Draft, authority: Path) -> Path:
    """Makes the folder of a site with a new key, and returns the public key to send to the server.

    Args:
        folder: to be made; may exist, if it has no settings and no key.
        draft: of the settings.
        authority: the server's `ca.crt`.

    Raises:
        InputError: the name, the address or the certificate cannot be used, or there is a site already.
    """
    _check(draft)
    public = folder / f"{draft.name}.pub"
    for path in (folder / SETTINGS, folder / KEY, public):
        if path.exists():
            raise InputError(
                f"{str(path)!r} exists already.", hint="take another folder; or delete it, if that site is no more."
            )
    certificate = read_authority(authority)
    make_private(folder)
    key = generate_private_key(SECP384R1())  # the curve that Flower's documentation names
    write_secret(folder / KEY, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    text = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_atomic(public, text + f" {draft.name}\n".encode())
    write_atomic(folder / AUTHORITY, certificate)
    write_atomic(folder / SETTINGS, _settings(draft))
    return public


def read_key(path: Path) -> EllipticCurvePrivateKey:
    """The private key of a site.

    Raises:
        InputError: it is missing, unreadable, no such key, or others may read it.
    """
    advice = "bring back the file that `fedelta site init` made, or make a new site and register its key."
    try:
        text = path.read_bytes()
        key = load_ssh_private_key(text, None)
    except OSError as error:
        raise InputError(f"the site's key {str(path)!r} cannot be read: {error.strerror}.", hint=advice) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{str(path)!r} is no private key in OpenSSH's format.", hint=advice) from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise InputError(f"the key {str(path)!r} is not one of a NIST curve, which Flower expects.", hint=advice)
    if not only_owner_may_read(path):
        raise InputError(
            f"others than its owner may read the site's key {str(path)!r}.", hint=f"chmod 600 {quote(str(path))}"
        )
    return key


def read_authority(path: Path) -> bytes:
    """The certificate of the server's authority, as PEM.

    Raises:
        InputError: it is missing or no certificate.
    """
    advice = "it is `HUB/tls/ca.crt` where `fedelta server init HUB` ran; copy that file."
    try:
        text = path.read_bytes()
        x509.load_pem_x509_certificate(text)
    except OSError as error:
        raise InputError(f"the certificate {str(path)!r} cannot be read: {error.strerror}.", hint=advice) from error
    except ValueError as error:
        raise InputError(f"{str(path)!r} is no certificate.", hint=advice) from error
    return text


def _check(draft: Draft) -> None:
    try:
        site_name(draft.name)
        host_and_port(draft.server)
        if draft.clients is not None:
            client_numbers(draft.clients)
    except ValueError as error:
        raise InputError(f"{error}.", hint="`fedelta site init --help` shows the options; nothing was made.") from error


def _settings(draft: Draft) -> str:
    clients = '# clients = "0-31"' if draft.clients is None else _line("clients", draft.clients)
    source = _line("source", "data" if draft.source is None else draft.source)
    return f"""\
# A site of a deployment. Relative paths are relative to this folder.
name = "{draft.name}"
server = "{draft.server}"
ca = "{AUTHORITY}"           # vouches for the server's certificate
key = "{KEY}"        # never leaves this machine
state = "state"         # what clients remember, the log; as private as the data

# Which clients are here. Without it the data are the site's own: one client with the site's name, or those that
# `client_column`, `file_pattern` or `folders` below name. With it, every site has the same data, and the recipe's
# section `[partition]` says which rows belong to which client; for trials on one machine.
{clients}

# A site whose data lack some of the classes is refused, since that is a mistake more often than not.
# allow_missing_classes = true

# What the site reads; a recipe cannot change it. The keys are those of a recipe's section `[data]`.
[data]
{source}
# label_column = "diagnosis"

# What every recipe must protect: "example" (each row), "local" (all data of a client), or "client" (the same, but the
# server is trusted to add the noise). The site counts what it releases in all runs, and stops before `max_epsilon`.
# [privacy]
# unit = "example"
# max_epsilon = 10.0
# max_delta = 1e-5

# Weights that are on this machine; without it only models that come with fedelta are loaded.
# [model]
# source = "weights/vit-base"

# [runtime]
# device = "cuda"
# threads = 2            # for sites that share a machine: together no more than it has cores, or each slows the others
"""


def _line(key: str, value: str) -> str:
    """One line of TOML; a path may have any letters."""
    return tomli_w.dumps({key: value}).strip()
