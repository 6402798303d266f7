"""The commands of a site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedelta import cli
from fedelta.cli.base import flower_extra
from fedelta.deployment.server import certificates
from fedelta.deployment.server.certificates import Certificates
from fedelta.deployment.site import check as site_check
from fedelta.deployment.site import running as site
from fedelta.deployment.site.check import Address
from fedelta.errors import InputError

runner = CliRunner()


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    files = Certificates(tmp_path)
    certificates.create(files, "fl.example.org")
    return files.authority


def init(folder: Path, ca: Path, *more: str):
    return runner.invoke(
        cli.app,
        ["site", "init", str(folder), "--name", "kiel", "--server", "fl.example.org:9093", "--ca", str(ca), *more],
    )


def test_init_prints_the_public_key_and_says_what_to_do_with_it(tmp_path, ca):
    result = init(tmp_path / "kiel", ca)
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'kiel' / 'kiel.pub'}\n"
    assert "copied to HUB/sites there, it registers this site" in result.stderr
    assert f"fedelta site run {tmp_path / 'kiel'}" in result.stderr


def test_init_of_a_site_that_exists_changes_nothing(tmp_path, ca):
    init(tmp_path / "kiel", ca)
    before = {path: path.read_bytes() for path in (tmp_path / "kiel").iterdir()}
    result = init(tmp_path / "kiel", ca)
    assert isinstance(result.exception, InputError)
    assert {path: path.read_bytes() for path in (tmp_path / "kiel").iterdir()} == before


def test_check_prints_the_lines_about_the_data(tmp_path, monkeypatch):
    address = Address("kiel", "h:1", "ca", "key", "state", 1)
    monkeypatch.setattr(site_check, "check", lambda folder: iter([address, "32 clients", "10 classes"]))
    assert runner.invoke(cli.app, ["site", "check", str(tmp_path)]).stdout == "32 clients\n10 classes\n"


def test_run_shows_each_event_with_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "run_site", lambda folder, show: show(f"joined from {folder.name}"))
    result = runner.invoke(cli.app, ["site", "run", str(tmp_path / "kiel")])
    assert re.fullmatch(r"\d\d:\d\d:\d\d joined from kiel\n", result.stderr)


def test_run_ends_with_130_after_ctrl_c(tmp_path, monkeypatch):
    def interrupted(folder, show):
        raise KeyboardInterrupt

    monkeypatch.setattr(site, "run_site", interrupted)
    assert runner.invoke(cli.app, ["site", "run", str(tmp_path)]).exit_code == 130


@pytest.mark.parametrize("module", ["flwr", "flwr.app", "cryptography", "httpx"])
def test_without_flower_a_command_says_how_to_get_it(module):
    with pytest.raises(InputError, match=f"a deployment needs '{module}'") as raised, flower_extra():
        raise ModuleNotFoundError(name=module)
    assert raised.value.hint == "pip install 'fedelta[flower]'"


def test_a_missing_module_of_another_kind_is_no_matter_of_the_extra():
    with pytest.raises(ModuleNotFoundError), flower_extra():
        raise ModuleNotFoundError(name="fedelta.typo")
