"""The folder that `fedelta site init` makes."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedelta.deployment.server import certificates
from fedelta.deployment.server.certificates import Certificates
from fedelta.deployment.server.keys import read_keys
from fedelta.deployment.site.folder import Draft, create, read_authority, read_key
from fedelta.errors import InputError

DRAFT = Draft("hamburg", "fl.example.org:9093")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = Certificates(tmp_path_factory.mktemp("tls"))
    certificates.create(files, "fl.example.org")
    return files.authority


def test_the_folder_holds_a_private_key_whose_public_part_registers_the_site(tmp_path, ca):
    public = create(tmp_path / "site", DRAFT, ca)
    assert public == tmp_path / "site" / "hamburg.pub"
    key = tmp_path / "site" / "site.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    keys = read_keys(public.parent)
    assert list(keys.registered) == ["hamburg"]
    assert not keys.problems
    assert read_key(key).curve.name == "secp384r1"


def test_every_site_has_another_key(tmp_path, ca):
    texts = {create(tmp_path / name, DRAFT, ca).read_text() for name in "ab"}
    assert len(texts) == 2


def test_the_settings_are_toml_with_what_was_given(tmp_path, ca):
    create(tmp_path / "site", Draft("hamburg", "[::1]:9443", 'a "folder" \\ of scans', "0-31"), ca)
    settings = tomllib.loads((tmp_path / "site" / "site.toml").read_text())
    assert (settings["name"], settings["server"], settings["clients"]) == ("hamburg", "[::1]:9443", "0-31")
    assert settings["data"] == {"source": 'a "folder" \\ of scans'}
    assert read_authority(tmp_path / "site" / settings["ca"]) == ca.read_bytes()


def test_without_clients_and_data_both_are_left_to_the_user(tmp_path, ca):
    create(tmp_path / "site", DRAFT, ca)
    settings = tomllib.loads((tmp_path / "site" / "site.toml").read_text())
    assert "clients" not in settings
    assert settings["data"]["source"] == "data"


@pytest.mark.parametrize("name", ["site.toml", "site.key", "hamburg.pub"])
def test_nothing_is_overwritten(tmp_path, ca, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name}' exists already"):
        create(tmp_path, DRAFT, ca)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("draft", "problem"),
    [
        (Draft("two words", "h:1"), "'two words' is no name of a site"),
        (Draft("a", "https://host:99"), "'https://host:99' is no host and port"),
        (Draft("a", "h:1", clients="5-2"), "'5-2' has a range that ends before it begins"),
    ],
)
def test_what_could_not_be_read_again_is_refused_before_anything_is_made(tmp_path, ca, draft, problem):
    with pytest.raises(InputError, match=problem):
        create(tmp_path / "site", draft, ca)
    assert not (tmp_path / "site").exists()


def test_a_missing_certificate_is_told_before_anything_is_made(tmp_path):
    with pytest.raises(InputError, match=r"ca\.crt' cannot be read: No such file"):
        create(tmp_path / "site", DRAFT, tmp_path / "ca.crt")
    assert not (tmp_path / "site").exists()


def test_a_file_that_is_no_certificate_is_told(tmp_path):
    (tmp_path / "ca.crt").write_text("hello")
    with pytest.raises(InputError, match="is no certificate"):
        create(tmp_path / "site", DRAFT, tmp_path / "ca.crt")


def test_a_key_that_others_may_read_is_refused(tmp_path, ca):
    create(tmp_path / "site", DRAFT, ca)
    key = tmp_path / "site" / "site.key"
    key.chmod(0o644)
    with pytest.raises(InputError, match="others than its owner may read") as raised:
        read_key(key)
    assert raised.value.hint == f"chmod 600 {key}"


def test_a_key_that_is_missing_or_none_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_key(tmp_path / "site.key")
    (tmp_path / "site.key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nxx\n-----END OPENSSH PRIVATE KEY-----")
    with pytest.raises(InputError, match="is no private key in OpenSSH's format"):
        read_key(tmp_path / "site.key")


def test_a_key_of_another_kind_is_told(tmp_path):
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (tmp_path / "site.key").write_bytes(pem)
    with pytest.raises(InputError, match="is not one of a NIST curve"):
        read_key(tmp_path / "site.key")
