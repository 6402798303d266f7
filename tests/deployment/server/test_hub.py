from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from tests.deployment.fakes import hub_at

from fedelta.deployment.server.hub import Hub, create, handout, refuse_open_secrets, renew, restore_state
from fedelta.errors import ConfigError, InputError


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    earlier = os.umask(0o022)  # a common one, so that the modes below are the code's doing
    try:
        return create(tmp_path_factory.mktemp("made") / "hub", "hub.example.org", 9443)
    finally:
        os.umask(earlier)


def test_keys_and_secrets_are_readable_for_their_owner_only(hub: Hub):
    modes = {path: path.stat().st_mode & 0o777 for path in [hub.path, *hub.path.rglob("*")]}
    folders = {mode for path, mode in modes.items() if path.is_dir()}
    assert folders == {0o700}
    for secret in (hub.certificates.server_key, hub.certificates.authority_key, hub.secret):
        assert modes[secret] == 0o600


def test_the_settings_that_are_written_are_those_that_were_asked_for(hub: Hub):
    settings = Hub.open(hub.path).settings()
    assert (settings.host, settings.port, settings.listen) == ("hub.example.org", 9443, "0.0.0.0")


def test_a_server_for_this_machine_listens_on_this_machine_only(tmp_path: Path):
    assert create(tmp_path / "hub", "127.0.0.1", 9443).settings().listen == "127.0.0.1"


def test_the_operator_is_told_what_each_site_needs(hub: Hub):
    text = handout(hub)
    assert "site init DIR --name NAME --server hub.example.org:9443 --ca ca.crt" in text
    assert f"copy its NAME.pub into {hub.sites}" in text


@pytest.mark.parametrize("host", ["my host", "fl.example.org:9093", "klinik-münchen.de", "https://x"])
def test_a_host_that_no_certificate_can_have_is_refused_before_anything_is_made(tmp_path: Path, host: str):
    with pytest.raises(ConfigError, match="is no name or address of a machine"):
        create(tmp_path / "hub", host, 9093)
    assert not (tmp_path / "hub").exists()


def test_an_address_with_colons_stands_in_brackets(tmp_path: Path):
    assert "--server [::1]:9093 " in handout(create(tmp_path / "hub", "::1", 9093))


def test_what_is_there_is_not_overwritten(hub: Hub):
    key = hub.certificates.authority_key.read_bytes()
    with pytest.raises(InputError, match="exists already; nothing was changed"):
        create(hub.path, "other.example.org", 9443)
    assert hub.certificates.authority_key.read_bytes() == key


def test_a_new_certificate_leaves_the_authority_and_the_rest(hub: Hub):
    earlier = {path: path.read_bytes() for path in hub.path.rglob("*") if path.is_file()}
    renew(hub)
    changed = {path.name for path, content in earlier.items() if path.read_bytes() != content}
    assert changed == {"server.crt", "server.key"}


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="is no server folder") as caught:
        Hub.open(tmp_path)
    assert "fedelta server init" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = 3", "has ['port'], expected the section `[server]` only"),
        ("[server]\nhost = 'x'\nport = 70000", "`server.port` is 70000, expected: less than or equal to 65535"),
        ("[server]\nhost = 'x'\nprot = 9443", "`server.prot`"),
        ("[server]", "`server.host` is missing"),
        ("[server", "is not TOML"),
    ],
)
def test_wrong_settings_are_explained(tmp_path: Path, text: str, message: str):
    hub = hub_at(tmp_path / "hub")
    hub.settings_file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(message)):
        hub.settings()


def test_a_folder_that_has_lost_its_state_gets_a_new_one(tmp_path: Path):
    hub = create(tmp_path / "hub", "127.0.0.1", 9443)
    secret = hub.secret.read_bytes()
    shutil.rmtree(hub.state)
    restore_state(hub)
    assert hub.lock.is_file()
    assert len(hub.secret.read_bytes()) == len(secret)
    assert hub.secret.read_bytes() != secret
    refuse_open_secrets(hub)


def test_secrets_that_others_can_read_are_refused_by_name(tmp_path: Path):
    hub = hub_at(tmp_path / "hub")
    hub.secret.write_text("secret", encoding="utf-8")
    hub.state.chmod(0o700)
    hub.secret.chmod(0o640)
    with pytest.raises(InputError, match=r"others on this machine can read .*state/secret") as caught:
        refuse_open_secrets(hub)
    assert caught.value.hint == f"chmod go= {hub.secret}"
    hub.secret.chmod(0o600)
    refuse_open_secrets(hub)
