"""How a site starts and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedelta.deployment.server import certificates
from fedelta.deployment.server.certificates import Certificates
from fedelta.deployment.site import running as site
from fedelta.deployment.site.account import Account, Due, Limit
from fedelta.deployment.site.check import Address
from fedelta.deployment.site.folder import Draft, create
from fedelta.errors import InputError, LinkError
from fedelta.privacy.state import Release
from fedelta.runtimes.remote.messages import Message


@dataclass
class Connection:
    """Joins at once, gives one message, and then does what the test says."""

    events: list[str]
    then: Callable[[], None]
    look_error: Exception | None = None
    messages: list[Message] = field(default_factory=lambda: [Message("finish")])
    clock_offset: float = 0.0

    def look(self) -> None:
        self.events.append("look")
        if self.look_error is not None:
            raise self.look_error

    def join(self, previous: int | None = None) -> int:
        self.events.append("join")
        return 5

    def receive(self) -> object:
        if not self.messages:
            self.then()
            return None
        return type("Delivery", (), {"message": self.messages.pop()})

    def answer(self, delivery: object, answer: Message) -> bool:
        self.events.append(answer.kind)
        return True

    def leave(self) -> None:
        self.events.append("leave")


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs a site over a connection, and returns what happened and what was shown."""
    events: list[str] = []
    lines: list[str] = []

    def check(folder: Path):
        yield Address("a", "h:1", "ca", "key", str(tmp_path / "state"), 1)
        events.append("data")
        yield "10 classes"

    def run(then: Callable[[], None] = interrupt, look_error: Exception | None = None) -> tuple[list[str], list[str]]:
        monkeypatch.setattr(site, "check", check)
        monkeypatch.setattr(site, "connect", lambda address: Connection(events, then, look_error))
        monkeypatch.setattr(site, "ask", lambda folder, message: Message("finished"))
        monkeypatch.setattr(site, "stop", lambda folder: events.append("stop"))
        site.run_site(tmp_path, lines.append)
        return events, lines

    run.events, run.lines = events, lines
    return run


def test_ctrl_c_ends_the_worker_and_says_good_bye(start, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        start()
    assert start.events == ["look", "data", "join", "finished", "stop", "leave"]
    assert start.lines[0] == "10 classes"
    assert start.lines[-1] == "the site has left"
    assert not (tmp_path / "state" / "session.json").exists()


def test_sigterm_ends_the_site_in_order_with_exit_code_0(start):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        start(terminate)
    assert ended.value.code == 0
    assert start.events[-2:] == ["stop", "leave"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_connection_that_has_to_be_mended_ends_the_site_before_its_data_are_read(start):
    with pytest.raises(InputError, match="expired"):
        start(look_error=InputError("the certificate has expired."))
    assert start.events == ["look"]


def test_a_server_that_is_away_does_not_keep_a_site_from_checking_its_data(start):
    with pytest.raises(KeyboardInterrupt):
        start(look_error=LinkError("refused"))
    assert start.events[:3] == ["look", "data", "join"]


def test_the_connection_takes_key_and_certificate_of_the_settings(tmp_path):
    files = Certificates(tmp_path)
    certificates.create(files, "fl.example.org")
    create(tmp_path / "site", Draft("a", "h:1"), files.authority)
    folder = tmp_path / "site"
    address = Address("a", "h:1", str(folder / "ca.crt"), str(folder / "site.key"), "state", 1)
    site.connect(address).leave()
    (folder / "site.key").chmod(0o640)
    with pytest.raises(InputError, match="others than its owner may read"):
        site.connect(address)


def test_a_site_tells_what_a_recipe_protects_and_what_has_been_spent(tmp_path):
    lines: list[str] = []
    account = Account(tmp_path, Limit(1e-5, 6.0))

    def ask(message: Message) -> Message:
        if message.kind == "train":
            account.admit("run", {"kiel": Due({Release(1.0): 1}, str(message.manifest["round"]))})
        return Message("answer")

    asked = site.telling(ask, tmp_path, lines.append)
    for unit, more in (("none", ""), ("example", ""), ("client", ""), ("local", "randomness = 'seeded'")):
        asked(Message("describe", {"config": f"[privacy]\nunit = {unit!r}\n{more}\n"}))
    asked(Message("describe", {"config": "["}))
    for round in (1, 1):  # what comes again costs nothing, so nothing is said
        asked(Message("train", {"round": round}))
    assert lines == [
        "privacy: unit 'example', with noise of this site's own key",
        "privacy: unit 'client', with noise of the server, which is trusted",
        "privacy: unit 'local', BUT NOISE FROM THE RECIPE'S SEED: whoever has the recipe can take it out again",
        "privacy: epsilon 4.378 of at most 6 is spent for this client in all runs, at delta 1e-05",
    ]


def test_serving_a_site_takes_no_torch():
    code = "import sys; import fedelta.deployment.site.running; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
