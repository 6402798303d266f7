from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedelta.deployment.server.keys import read_keys


def test_a_file_registers_the_site_of_its_name(tmp_path: Path):
    key = generate_private_key(SECP384R1()).public_key()
    (tmp_path / "hamburg.pub").write_bytes(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    (tmp_path / "notes.txt").write_text("no key", encoding="utf-8")
    keys = read_keys(tmp_path)
    assert keys.registered == {"hamburg": key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)}
    assert keys.problems == {}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("kiel", b"nonsense", "holds no public key"),
        ("kiel", b"", "holds no public key"),
        ("kiel", b"x" * 20_000, "too long"),
        (
            "kiel",
            Ed25519PrivateKey.from_private_bytes(bytes(32))
            .public_key()
            .public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
            "not one of a NIST curve",
        ),
        ("a b", b"nonsense", "letters from a to z"),
        ("x" * 65, b"nonsense", "63 characters at most"),
    ],
)
def test_a_file_that_cannot_be_used_registers_nobody_and_is_named(tmp_path: Path, name: str, content: bytes, text: str):
    (tmp_path / f"{name}.pub").write_bytes(content)
    keys = read_keys(tmp_path)
    assert keys.registered == {}
    assert text in keys.problems[f"{name}.pub"]


def test_one_key_for_two_sites_registers_neither(tmp_path: Path):
    key = generate_private_key(SECP384R1()).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    for name in ("hamburg", "kiel"):
        (tmp_path / f"{name}.pub").write_bytes(key)
    keys = read_keys(tmp_path)
    assert keys.registered == {}
    assert len(keys.disputed) == 1
    assert "that of site 'kiel' too" in keys.problems["hamburg.pub"]


def test_of_two_files_with_one_key_the_one_that_bears_the_name_in_the_key_registers_the_site(tmp_path: Path):
    key = generate_private_key(SECP384R1()).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    for name in ("hamburg", "kiel"):
        (tmp_path / f"{name}.pub").write_bytes(key + b" hamburg\n")
    keys = read_keys(tmp_path)
    assert list(keys.registered) == ["hamburg"]
    assert list(keys.problems) == ["kiel.pub"]
