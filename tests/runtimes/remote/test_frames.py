"""Messages between two processes of a site."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from fedelta.errors import PayloadError
from fedelta.runtimes.remote.frames import receive, send
from fedelta.runtimes.remote.messages import MAX_MANIFEST_BYTES, Message


@pytest.fixture
def ends():
    first, second = socket.socketpair()
    with first, second:
        second.settimeout(5)
        yield first, second


def test_a_message_comes_as_it_was_sent(ends):
    first, second = ends
    message = Message("train", {"round": 3}, (b"ab", b"", b"x" * 3_000_000))  # more than a socket buffers
    sender = threading.Thread(target=send, args=(first, message))
    sender.start()
    received = receive(second, 2**22)
    sender.join()
    assert (received.kind, received.manifest) == ("train", {"round": 3})
    assert [bytes(blob) for blob in received.blobs] == list(message.blobs)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (struct.pack(">4sQQ", b"HTTP", 2, 0), "begins with b'HTTP', expected b'FDLM'"),
        (struct.pack(">4sQQ", b"FDLM", 2, 2**40), f"announces 2 bytes of manifest and {2**40} of blobs"),
        (struct.pack(">4sQQ", b"FDLM", MAX_MANIFEST_BYTES + 1, 0), f"announces {MAX_MANIFEST_BYTES + 1} bytes"),
        (struct.pack(">4sQQ", b"FDLM", 2, 0) + b"\xff\xfe", "no text in UTF-8"),
        (struct.pack(">4sQQ", b"FDLM", 2, 0) + b"{}", "lacks `kind`"),
    ],
)
def test_what_is_no_message_is_refused_before_memory_is_taken_for_it(ends, header: bytes, problem: str):
    ends[0].sendall(header)
    with pytest.raises(PayloadError, match=problem):
        receive(ends[1], 2**20)


def test_an_end_in_the_middle_is_an_error_of_the_connection(ends):
    ends[0].sendall(struct.pack(">4sQQ", b"FDLM", 20, 0) + b"{")
    ends[0].close()
    with pytest.raises(ConnectionError, match="after 1 of 20 bytes"):
        receive(ends[1], 2**20)
