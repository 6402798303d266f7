"""How a worker treats those who connect to it, without the process around it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedelta.deployment.site.worker import Desk
from fedelta.runtimes.remote.frames import SECRET_BYTES, receive, send
from fedelta.runtimes.remote.messages import Message
from fedelta.runtimes.remote.worker_files import WorkerFiles, address, connected

SECRET = bytes(range(SECRET_BYTES))


def echo(message: Message) -> Message:
    return Message("echo", {"kind": message.kind}, [bytes(blob) for blob in message.blobs])


@pytest.fixture
def desk(tmp_path) -> Iterator[Path]:
    """The path of a socket at which a desk answers."""
    path = tmp_path / "worker.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with address(path) as text:
        listener.bind(text)
    listener.listen()
    with closing(listener):
        thread = threading.Thread(target=Desk(listener, SECRET, echo, 1000).serve, args=(0.2,))
        thread.start()
        yield path
        thread.join(5)
        assert not thread.is_alive(), "a desk ends when nobody has come for a while"


def reached(path: Path) -> socket.socket:
    connection = connected(path)
    assert connection is not None
    connection.settimeout(5)
    return connection


def answer_to(path: Path, *parts: bytes) -> Message:
    with reached(path) as connection:
        for part in parts:
            connection.sendall(part)
        return receive(connection, 2**20)


def asked(path: Path) -> Message:
    with reached(path) as connection:
        connection.sendall(SECRET)
        send(connection, Message("train", {}, [b"abc"]))
        return receive(connection, 2**20)


def test_who_knows_the_secret_is_answered(desk):
    answer = asked(desk)
    assert (answer.kind, answer.manifest["kind"], bytes(answer.blobs[0])) == ("echo", "train", b"abc")


def test_who_does_not_know_the_secret_is_not_answered(desk, caplog):
    with pytest.raises(ConnectionError):
        answer_to(desk, bytes(SECRET_BYTES))
    assert "does not know the secret" in caplog.text
    assert asked(desk).kind == "echo"


def test_a_message_that_is_too_large_is_refused_by_its_announcement(desk):
    answer = answer_to(desk, SECRET, struct.pack(">4sQQ", b"FDLM", 2, 1001))
    assert answer.kind == "refused"
    assert "announces 2 bytes of manifest and 1001 of blobs" in answer.manifest["reason"]
    assert asked(desk).kind == "echo"


def test_garbage_is_refused_and_others_are_answered(desk):
    answer = answer_to(desk, SECRET, b"GET / HTTP/1.1\r\n\r\n" + bytes(8))
    assert "begins with b'GET '" in answer.manifest["reason"]
    assert asked(desk).kind == "echo"


def test_a_caller_that_dies_in_the_middle_keeps_nobody_waiting(desk):
    reached(desk).close()
    with reached(desk) as connection:
        connection.sendall(SECRET + b"FDL")
    assert asked(desk).kind == "echo"


def test_a_socket_may_lie_deeper_than_the_operating_system_allows(tmp_path):
    folder = tmp_path / ("long" * 30) / ("name" * 10)
    folder.mkdir(parents=True)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        with address(folder / "worker.sock") as text:
            listener.bind(text)
        listener.listen()
        reached(folder / "worker.sock").close()


def test_the_secret_is_made_once_and_is_the_owners_alone(tmp_path):
    files = WorkerFiles(tmp_path / "state")
    first = files.secret()
    assert files.secret() == WorkerFiles(tmp_path / "state").secret() == first
    assert len(first) == SECRET_BYTES
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state/worker.secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["worker.secret"]


def test_a_secret_that_others_may_read_is_refused(tmp_path):
    files = WorkerFiles(tmp_path)
    files.secret()
    (tmp_path / "worker.secret").chmod(0o640)
    with pytest.raises(Exception, match="others than its owner may read") as raised:
        files.secret()
    assert "chmod 600" in str(raised.value)
