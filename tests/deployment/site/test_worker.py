"""The worker of a site as a process of its own, killed and left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.deployment.talk import DIGITS, RUN, entry, service
from tests.small import SMALL

from fedelta import __version__
from fedelta.codecs.wire import encode
from fedelta.deployment.site.requests import Prepare, read
from fedelta.runtimes.remote.caller import ask, stop
from fedelta.runtimes.remote.messages import PROTOCOL, Message, pack
from fedelta.runtimes.remote.worker_files import WorkerFiles

pytestmark = pytest.mark.deploy

LONG = SMALL.replace("local_epochs = 1", "local_epochs = 80")  # a second
PARTS = {
    "describe": {"run": RUN, "protocol": PROTOCOL, "version": __version__, "config": LONG},
    "prepare": {"run": RUN, "class_names": list(DIGITS), "clients": [[0, 0], [2, 2]], "num_clients": 6},
}


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    (tmp_path / "site.toml").write_text('name = "hamburg"\nclients = [0, 2]\n[data]\nsource = "digits"\n')
    yield tmp_path
    stop(tmp_path)


def files(folder: Path) -> WorkerFiles:
    return WorkerFiles(folder / "state")


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


def times_logged(folder: Path, text: str) -> int:
    return files(folder).log.read_text().count(text)


def training(folder: Path, tmp_path: Path) -> tuple[Message, Message]:
    """A message that trains for seconds, and the answer of the same service in this process."""
    local = service(tmp_path / "local", clients=[0, 2])
    for kind, manifest in PARTS.items():
        assert local.answer(Message(kind, manifest)).kind != "refused"
        assert ask(folder, Message(kind, manifest)).kind != "refused"
    deployed = local._deployed(LONG, read(Prepare, PARTS["prepare"]))
    names = deployed.site.engine.spec.shared
    params = {name: deployed.model.params[name] for name in names}
    payload, _ = encode(params, deployed.site.wire, deployed.config.codec.down)
    clients = [{"id": number, "download": 0, "upload": 0, "version": 0, "keeps_adrift": True} for number in (0, 2)]
    manifest = {"run": RUN, "round": 1, "num_clients": 6, "uploads": [list(names)], "clients": clients}
    message = Message("train", manifest, [payload])
    return message, local.answer(message)


def test_a_worker_that_is_killed_in_training_is_started_again_and_gives_the_same_bits(folder, tmp_path):
    (tmp_path / "local").mkdir()
    message, expected = training(folder, tmp_path)
    with ThreadPoolExecutor() as pool:
        future = pool.submit(ask, folder, message)
        wait_for(lambda: times_logged(folder, "clients train") == 1)
        pid = files(folder).worker_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        answer = future.result(60)
    assert times_logged(folder, "clients train") == 2
    assert all(entry(answer, number)["payload"] == entry(expected, number)["payload"] for number in (0, 2))
    # A caller that is killed loses nothing: the work goes on, and the next one gets its result.
    again = Message("train", {**message.manifest, "round": 2}, message.blobs)
    script = "import sys, pathlib; from fedelta.runtimes.remote import caller, messages; "
    script += "caller.ask(sys.argv[1], messages.unpack(sys.argv[2], pathlib.Path(sys.argv[3]).read_bytes(), 2**30))"
    text, packed = pack(again)
    (tmp_path / "packed").write_bytes(packed)
    caller = subprocess.Popen([sys.executable, "-c", script, str(folder), text, str(tmp_path / "packed")])
    wait_for(lambda: times_logged(folder, "round 2: 2 of the site's clients train") == 1)
    caller.kill()
    caller.wait()
    assert ask(folder, again).kind == "trained"
    assert times_logged(folder, "round 2: 2 of the site's clients train") == 1


RUNS_A_SITE = """
import fcntl, pathlib, sys, time
state = pathlib.Path(sys.argv[1]) / "state"
state.mkdir(mode=0o700)
lock = (state / "site.lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)
from fedelta.runtimes.remote.caller import ask
from fedelta.runtimes.remote.messages import Message
print(ask(sys.argv[1], Message("dance")).kind, flush=True)
time.sleep(60)
"""


def test_a_worker_ends_with_the_process_that_runs_the_site(folder):
    command = [sys.executable, "-c", RUNS_A_SITE, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline().strip() == "refused"
        assert files(folder).worker_pid() is not None
        runner.kill()
        wait_for(lambda: files(folder).worker_pid() is None, seconds=5)


def test_settings_that_cannot_be_used_are_told_and_a_corrected_file_is_read(folder):
    valid = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(valid.replace("clients", "cliens"))
    answer = ask(folder, Message("dance"))
    assert "`cliens` is unknown; did you mean `clients`" in answer.manifest["reason"]
    (folder / "site.toml").write_text(valid)
    wait_for(lambda: files(folder).worker_pid() is None, seconds=5)
    assert "'dance' is not known" in ask(folder, Message("dance")).manifest["reason"]
    assert {path.stat().st_mode & 0o077 for path in (folder / "state").rglob("*")} == {0}
