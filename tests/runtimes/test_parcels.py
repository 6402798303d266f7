"""Parcels through a pair of sockets: what is sent is what is received, and memory that was read is used again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from socket import AF_UNIX, SOCK_STREAM, socket, socketpair

import pytest

from fedelta.runtimes import parcels
from fedelta.runtimes.parcels import Inbox, Outbox, Parcel


@pytest.fixture
def line() -> Iterator[tuple[socket, socket]]:
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


def test_a_parcel_gives_every_receiver_its_values_and_blobs(line: tuple[socket, socket]):
    parcel = Parcel({"number": 7, "names": ["a"]}, [b"first", b"", b"third"])
    for _ in range(2):
        parcel.send(line[0])
        assert Inbox(line[1]).receive() == ({"number": 7, "names": ["a"]}, [b"first", b"", b"third"])
    parcel.close()


def test_memory_is_used_again_once_its_parcel_has_been_read(
    line: tuple[socket, socket], monkeypatch: pytest.MonkeyPatch
):
    made, outbox, inbox = [], Outbox(), Inbox(line[1])
    monkeypatch.setattr(parcels, "_memory", lambda: made.append(os.memfd_create("test")) or made[-1])
    outbox.send(line[0], {"number": 1}, [b"a long blob of the first parcel"])
    outbox.send(line[0], {"number": 2}, [b"second"])  # before the first one is read
    assert len(made) == 2
    assert inbox.receive() == ({"number": 1}, [b"a long blob of the first parcel"])
    outbox.send(line[0], {"number": 3}, [b"third"])
    assert len(made) == 2
    assert [inbox.receive() for _ in range(2)] == [({"number": 2}, [b"second"]), ({"number": 3}, [b"third"])]


def test_memory_that_is_too_small_gives_its_place_to_larger(line: tuple[socket, socket]):
    outbox, inbox = Outbox(), Inbox(line[1])
    for content in (b"x", b"y" * 10_000, b"z" * 100_000, b"w" * 50_000, b""):
        outbox.send(line[0], {}, [content])
        assert inbox.receive() == ({}, [content])
    assert [len(memory) > 100_000 for memory in outbox._kept] == [True]


def test_what_was_received_does_not_change_when_its_memory_is_used_again(line: tuple[socket, socket]):
    outbox, inbox = Outbox(), Inbox(line[1])
    outbox.send(line[0], {}, [b"first"])
    _, [first] = inbox.receive()
    outbox.send(line[0], {}, [b"other"])
    assert (first, inbox.receive()) == (b"first", ({}, [b"other"]))


def test_a_large_parcel_gives_its_memory_back(line: tuple[socket, socket], monkeypatch: pytest.MonkeyPatch):
    made, outbox, inbox = [], Outbox(), Inbox(line[1])
    monkeypatch.setattr(parcels, "_KEPT_BYTES", 1000)
    monkeypatch.setattr(parcels, "_memory", lambda: made.append(os.memfd_create("test")) or made[-1])
    for content in (b"x" * 2000, b"y" * 2000):
        outbox.send(line[0], {}, [content])
        assert inbox.receive() == ({}, [content])
    assert len(made) == 2
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[1])


def test_the_end_of_the_sender_is_told(line: tuple[socket, socket]):
    line[0].close()
    with pytest.raises(EOFError):
        Inbox(line[1]).receive()
