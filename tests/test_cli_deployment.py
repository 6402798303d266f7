"""The commands of a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.deployment.fakes import hub_at, put_key
from typer.testing import CliRunner

from fedelta import cli
from fedelta.deployment.server import running as serving
from fedelta.errors import InputError

runner = CliRunner()


def test_init_makes_a_server_and_says_what_sites_need(tmp_path: Path):
    result = runner.invoke(cli.app, ["server", "init", str(tmp_path / "hub"), "--host", "hub.example.org"])
    assert result.exit_code == 0
    assert f"fedelta server run {tmp_path / 'hub'}" in result.stdout
    assert "--server hub.example.org:9093 --ca ca.crt" in result.stdout


def test_init_asks_for_the_name_of_the_machine(tmp_path: Path):
    result = runner.invoke(cli.app, ["server", "init", str(tmp_path / "hub")])
    assert isinstance(result.exception, InputError)
    assert "`--host` is missing" in result.exception.message
    assert not (tmp_path / "hub").exists()


def test_init_with_renew_changes_the_certificate_only(tmp_path: Path):
    runner.invoke(cli.app, ["server", "init", str(tmp_path / "hub"), "--host", "hub.example.org"])
    settings, certificate = (tmp_path / "hub" / name for name in ("server.toml", "tls/server.crt"))
    settings.write_text(settings.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    earlier = certificate.read_bytes()
    result = runner.invoke(cli.app, ["server", "init", str(tmp_path / "hub"), "--renew"])
    assert "restart `fedelta server run" in result.stdout
    assert certificate.read_bytes() != earlier
    assert "# mine" in settings.read_text(encoding="utf-8")


def test_run_shows_each_event_and_ends_with_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def serve(hub: object, say: object) -> None:
        say("site 'kiel' is online")  # type: ignore[operator]
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "run_server", serve)
    result = runner.invoke(cli.app, ["server", "run", str(hub_at(tmp_path / "hub").path)])
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0] == "site 'kiel' is online"
    assert "unfinished deployments go on with the next" in result.stderr


def test_sites_lists_the_registered_ones_also_as_json(tmp_path: Path):
    hub = hub_at(tmp_path / "hub")
    put_key(hub, "kiel")
    result = runner.invoke(cli.app, ["server", "sites", str(hub.path)])
    assert "kiel" in result.stdout
    assert f"start it: fedelta server run {hub.path}" in result.stderr
    shown = json.loads(runner.invoke(cli.app, ["server", "sites", str(hub.path), "--json"]).stdout)
    assert shown["sites"] == [{"name": "kiel", "connection": "unknown", "since": "", "doing": ""}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["server", "run", "HUB"], "is no server folder"),
        (["server", "sites", "HUB"], "is no server folder"),
        (["attach", "HUB/runs/demo"], "is no server folder"),
        (["server", "stop", "HUB/runs/demo"], "is no server folder"),
        (["deploy", "recipes/demo.toml", "--server", "HUB"], "is no server folder"),
    ],
)
def test_a_folder_that_is_no_servers_is_told(tmp_path: Path, arguments: list[str], message: str):
    words = [word.replace("HUB", str(tmp_path / "hub")) for word in arguments]
    result = runner.invoke(cli.app, words)
    assert isinstance(result.exception, InputError)
    assert message in result.exception.message


def test_deploy_without_a_running_server_says_how_to_start_it(tmp_path: Path, repository: Path):
    hub = hub_at(tmp_path / "hub")
    result = runner.invoke(cli.app, ["deploy", str(repository / "recipes" / "demo.toml"), "--server", str(hub.path)])
    assert isinstance(result.exception, InputError)
    assert result.exception.hint == f"fedelta server run {hub.path}"


def test_deploy_with_detach_prints_the_run_directory(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedelta.deployment.server.submit.is_served", lambda hub: True)
    hub = hub_at(tmp_path / "hub")
    recipe = str(repository / "recipes" / "demo.toml")
    result = runner.invoke(cli.app, ["deploy", recipe, "--server", str(hub.path), "--detach"])
    assert result.stdout == f"{hub.runs.resolve() / 'demo'}\n"


def test_ctrl_c_leaves_a_deployment_alone_and_says_how_to_see_it_again(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedelta.deployment.server.submit.is_served", lambda hub: True)
    monkeypatch.setattr("fedelta.deployment.server.attach.follow", interrupt)
    hub = hub_at(tmp_path / "hub")
    result = runner.invoke(cli.app, ["deploy", str(repository / "recipes" / "demo.toml"), "--server", str(hub.path)])
    assert result.exit_code == 130
    text = " ".join(result.stderr.split())
    assert f"demo goes on without this terminal; see it again: fedelta attach {hub.runs.resolve() / 'demo'}" in text
