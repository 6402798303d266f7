"""Parcels: values between a run and its worker processes, through shared memory without a name.

A parcel is JSON values and blobs of bytes in a piece of memory that the kernel frees with the last process that has it,
however the processes end. Only its file descriptor goes through the connection. Nothing in it is executed.

    state, 1 byte: whether the receiver has read the parcel | length of the header, 7 bytes | header, JSON | blobs
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from socket import recv_fds, send_fds, socket
from tempfile import TemporaryFile
from typing import Any

_PREFIX_BYTES = 8
_READ = b"\0"
_KEPT_BYTES = 64 * 2**20  # of the memory that an outbox keeps: a parcel as large as a model gives its memory back

Values = Mapping[str, Any]  # Any: JSON values


class Parcel:
    """Values and blobs, ready to be sent to any number of processes.

    Args:
        values: JSON values by name.
        blobs: bytes that the values refer to by index.
    """

    def __init__(self, values: Values, blobs: Sequence[bytes] = ()) -> None:
        self._descriptor = _memory()
        _write(self._descriptor, values, blobs)

    def send(self, receiver: socket) -> None:
        """Sends it through a Unix socket; does not wait until it is received.

        Raises:
            OSError: the other process has ended.
        """
        send_fds(receiver, [b"p"], [self._descriptor])

    def close(self) -> None:
        """Gives this process's hold on the memory back."""
        os.close(self._descriptor)


class Outbox:
    """Sends parcels that each have one receiver, through memory that it uses again when a parcel has been read.

    The pages of new memory have to be cleared by the kernel, which takes longer than to write a parcel into old ones.
    """

    def __init__(self) -> None:
        self._kept: list[int] = []

    def send(self, receiver: socket, values: Values, blobs: Sequence[bytes] = ()) -> None:
        """Sends a parcel through a Unix socket; does not wait until it is received.

        Raises:
            OSError: the other process has ended.
        """
        descriptor = next((kept for kept in self._kept if os.pread(kept, 1, 0) == _READ), None)
        if descriptor is None:
            descriptor = _memory()
            self._kept.append(descriptor)
        _write(descriptor, values, blobs)
        send_fds(receiver, [b"p"], [descriptor])
        if sum(os.fstat(kept).st_size for kept in self._kept) > _KEPT_BYTES:
            self._kept.remove(descriptor)
            os.close(descriptor)


def receive(sender: socket) -> tuple[dict[str, Any], list[bytes]]:
    """Waits for a parcel and returns its values and blobs.

    Raises:
        EOFError: the other process has ended.
        OSError: likewise.
    """
    _, descriptors, _, _ = recv_fds(sender, 1, 1)
    if not descriptors:
        raise EOFError
    [descriptor] = descriptors
    try:
        start = _PREFIX_BYTES + int.from_bytes(_read(descriptor, 1, _PREFIX_BYTES), "little")
        header = json.loads(_read(descriptor, _PREFIX_BYTES, start))
        blobs = []
        for length in header["lengths"]:
            blobs.append(_read(descriptor, start, start + length))
            start += length
        os.pwrite(descriptor, _READ, 0)
        return header["values"], blobs
    finally:
        os.close(descriptor)


def _memory() -> int:
    """A file descriptor of memory, or of a file without a name where the system has no such memory."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedelta")
    with TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(descriptor: int, values: Values, blobs: Sequence[bytes]) -> None:
    header = json.dumps({"values": values, "lengths": [len(blob) for blob in blobs]}).encode()
    os.lseek(descriptor, 0, os.SEEK_SET)
    for part in (b"\1", len(header).to_bytes(_PREFIX_BYTES - 1, "little"), header, *blobs):
        view = memoryview(part).cast("B")
        while view:
            view = view[os.write(descriptor, view) :]


def _read(descriptor: int, start: int, end: int) -> bytes:
    """The bytes of a parcel from `start` to `end`; the system gives at most two gigabytes at a time."""
    content = os.pread(descriptor, end - start, start)
    return content if len(content) == end - start else content + _read(descriptor, start + len(content), end)
