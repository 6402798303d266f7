"""The demo of a deployment, with programs that only say what they were asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedelta.deployment import demo
from fedelta.errors import FedeltaError

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

# Stands for `fedelta`: notes its arguments; makes a site's public key; a server or site runs until it is ended.
FEDELTA = """
import pathlib, signal, sys, time
log, *words = sys.argv[1:]
with open(log, "a") as file:
    print(*words, file=file)
if words[:2] == ["server", "init"]:
    (pathlib.Path(words[2]) / "sites").mkdir(parents=True)
if words[:2] == ["site", "init"]:
    folder = pathlib.Path(words[2])
    folder.mkdir()
    (folder / f"{folder.name}.pub").write_text("key")
if words[1] == "run":
    def end(*_):
        with open(log, "a") as file:
            print("ended", *words, file=file)
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    (pathlib.Path(log).parent / f"{words[0]}-{pathlib.Path(words[2]).name}").touch()
    time.sleep(30)
if words[0] == "deploy":
    ready = [pathlib.Path(log).parent / name for name in ("server-hub", "site-north", "site-south")]
    while not all(path.exists() for path in ready):
        time.sleep(0.01)
    sys.exit(CODE)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the demo; returns its exit code, and what the programs were asked."""

    def call(code: int = 0) -> tuple[int, list[str]]:
        log, program = tmp_path / "log", FEDELTA.replace("CODE", str(code))
        monkeypatch.setattr(demo, "_command", lambda words: [sys.executable, "-c", program, log, *map(str, words)])
        monkeypatch.setattr(demo, "is_served", lambda hub: (tmp_path / "server-hub").exists())
        folder = tmp_path / "demo"
        folder.mkdir()
        return demo.demonstrate(Path("x.toml"), folder), log.read_text().replace(f"{folder}/", "").splitlines()

    return call


def test_everything_is_started_and_ended_in_order(run, tmp_path):
    code, lines = run()
    assert code == 0
    assert lines[0].startswith("server init hub --host 127.0.0.1 --port ")
    sites = [line for line in lines if line.startswith("site init")]
    assert [line.split("--clients ")[1] for line in sites] == ["0-31", "32-63"]
    assert "deploy x.toml --server hub --out run" in lines
    ended = [line for line in lines if line.startswith("ended")]
    assert sorted(ended) == ["ended server run hub", "ended site run north", "ended site run south"]
    assert sorted(path.name for path in (tmp_path / "demo" / "hub" / "sites").iterdir()) == ["north.pub", "south.pub"]


def test_the_exit_code_is_that_of_the_deployment(run):
    code, lines = run(3)
    assert code == 3
    assert len([line for line in lines if line.startswith("ended")]) == 3


def test_a_step_that_fails_ends_the_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_command", lambda words: [sys.executable, "-c", "raise SystemExit(2)"])
    with pytest.raises(FedeltaError, match=r"`fedelta server init .* failed"):
        demo.demonstrate(Path("x.toml"), tmp_path)


def test_a_server_that_does_not_start_is_told(run, monkeypatch):
    monkeypatch.setattr(demo, "_START_SECONDS", 0.1)
    monkeypatch.setattr(demo, "is_served", lambda hub: False)
    with pytest.raises(FedeltaError, match=r"the server did not start within 0\.1 s"):
        demo._wait_for_server(Path("hub"))
