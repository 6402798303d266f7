from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.deployment.fakes import hub_at

from fedelta.deployment.server.hub import Hub
from fedelta.deployment.server.running import prepare_database, refuse_port_in_use, run_server
from fedelta.errors import InputError, RunError
from fedelta.record.files import exclusive
from fedelta.runtimes.flower import programs


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return hub_at(tmp_path / "hub")


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_port_in_use_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use") as caught:
            refuse_port_in_use("127.0.0.1", port)
    assert "change `port` in server.toml" in str(caught.value.hint)


def test_a_second_server_on_a_folder_is_refused(hub: Hub):
    with exclusive(hub.lock, ""), pytest.raises(RunError, match=r"a server runs on .*hub' already"):
        run_server(hub, print)


def test_a_database_of_a_newer_flower_is_refused_with_what_to_do(hub: Hub):
    hub.database.write_bytes(b"database")
    prepare_database(hub, "1.42.0", print)
    with pytest.raises(InputError, match=r"was made by Flower 1.42.0, and 1.41.0, which is installed") as caught:
        prepare_database(hub, "1.41.0", print)
    assert "pip install 'flwr==1.42.0'. Without superlink.db" in str(caught.value.hint)
    assert hub.database.read_bytes() == b"database"


def test_before_an_upgrade_the_database_is_copied_with_what_is_beside_it(hub: Hub):
    said: list[str] = []
    beside = hub.state / "superlink.db-wal"
    hub.database.write_bytes(b"database")
    beside.write_bytes(b"not yet in it")
    prepare_database(hub, "1.41.0", said.append)
    assert said == []
    prepare_database(hub, "1.42.0", said.append)
    assert (hub.state / "superlink.db.1.41.0").read_bytes() == b"database"
    assert (hub.state / "superlink.db.1.41.0-wal").read_bytes() == b"not yet in it"
    assert "Flower 1.42.0 upgrades the database of 1.41.0" in said[0]
    prepare_database(hub, "1.42.0", said.append)
    assert len(said) == 1


def test_without_a_database_any_tested_version_may_begin(hub: Hub):
    prepare_database(hub, "1.42.0", print)
    prepare_database(hub, "1.41.0", print)


@pytest.mark.parametrize("version", ["1.40.3", "1.43.0", "2.0.0"])
def test_a_version_of_flower_that_was_not_tried_is_refused(monkeypatch: pytest.MonkeyPatch, version: str):
    monkeypatch.setattr(programs, "version", lambda name: version)
    with pytest.raises(InputError, match=f"Flower is {version}, expected 1.41 or 1.42") as caught:
        programs.flower_version()
    assert caught.value.hint == "pip install 'fedelta[flower]'"


def test_secrets_are_in_no_command_line(hub: Hub):
    hub.secret.write_text("very secret", encoding="utf-8")
    commands = [
        programs.superlink("127.0.0.1:1", hub.certificates, hub.database, hub.secret),
        programs.superexec("127.0.0.1:1", hub.certificates, hub.secret),
    ]
    assert all(str(hub.secret) in command for command in commands)
    assert not any("very secret" in part for command in commands for part in command)


def test_flowers_programs_have_their_own_home_and_find_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLWR_HOME", "/home/somebody/.flwr")
    environment = programs.environment(tmp_path)
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment["PATH"].split(":")[0] == str(Path(programs.program("x")).parent)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"


def test_the_submitted_app_names_the_installed_package_and_nothing_to_install():
    import tomllib

    project = tomllib.loads(programs.bundle({"deployment": ""}))
    assert project["project"]["dependencies"] == []
    assert project["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "fedelta.runtimes.flower.server_app:app",
        "clientapp": "fedelta.runtimes.flower.client_app:app",
    }


def test_what_runs_all_the_time_on_a_server_does_without_torch():
    modules = "fedelta.deployment.server.running, fedelta.deployment.server.proxy"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
