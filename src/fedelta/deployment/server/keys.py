"""The public keys of registered sites: one file for each, `NAME.pub`, whose stem is the name of the site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedelta.deployment.naming import site_name

SUFFIX = ".pub"
_MAX_BYTES = 16 * 2**10  # a P-521 key has 300


@dataclass(frozen=True)
class Keys:
    """What is in the folder of public keys.

    Args:
        registered: key of each site by its name, as PEM; in the order of the names.
        problems: why a file does not register a site, by its name.
        disputed: keys that several files have, so that none of them registers a site.
    """

    registered: Mapping[str, bytes] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    disputed: frozenset[bytes] = frozenset()


def read_keys(folder: Path) -> Keys:
    """The keys in `folder`; a file that cannot be used registers no site.

    Of several files with one key, that counts whose name is also written behind the key, as `fedelta site init` does.
    """
    keys: dict[str, bytes] = {}
    problems: dict[str, str] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            name = site_name(path.stem)
            keys[name] = read_key(path)
        except (OSError, ValueError) as error:
            problems[path.name] = str(error)
    names_of: dict[bytes, list[str]] = {}
    for name, key in keys.items():
        names_of.setdefault(key, []).append(name)
    disputed: set[bytes] = set()
    for key, names in names_of.items():
        owners = names if len(names) == 1 else [name for name in names if _is_named(folder / f"{name}{SUFFIX}", name)]
        disputed |= set() if len(owners) == 1 else {key}
        for name in names if key in disputed else [name for name in names if name not in owners]:
            other = next(twin for twin in (*owners, *names) if twin != name)
            problems[f"{name}{SUFFIX}"] = f"the key is that of site {other!r} too; each site has its own"
    registered = {name: key for name, key in keys.items() if f"{name}{SUFFIX}" not in problems}
    return Keys(registered, problems, frozenset(disputed))


def _is_named(path: Path, name: str) -> bool:
    """Whether the name is written behind the key."""
    return name.encode() in path.read_bytes().split()[2:]


def read_key(path: Path) -> bytes:
    """The public key in an OpenSSH file, as PEM.

    Raises:
        ValueError: it is none, or of another kind than Flower takes.
        OSError: it cannot be read.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError("the file is too long for a public key")
    try:
        key = load_ssh_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("the file holds no public key in OpenSSH's format; give the `.pub` of a site") from error
    if not (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1 | SECP384R1 | SECP521R1)):
        raise ValueError("the key is not one of a NIST curve; `fedelta site init` makes such a key")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
