"""Parcels: values between a run and its worker processes, through shared memory without a name.

A parcel is JSON values and blobs of bytes in a piece of memory that the kernel frees with the last process that has it,
however the processes end. Only its file descriptor goes through the connection, and for memory that the receiver has
mapped already only its number. Nothing in it is executed.

    state, 1 byte: whether the receiver has read the parcel | length of the header, 7 bytes | header, JSON | blobs
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from mmap import PAGESIZE, mmap
from socket import recv_fds, send_fds, socket
from tempfile import TemporaryFile
from typing import Any

_PREFIX_BYTES = 8
_READ = b"\0"
_ONCE = b"\xff"  # sent for memory that is not used again; kept memory has a lower number
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
        _write(self._descriptor, _parts(values, blobs))

    def send(self, receiver: socket) -> None:
        """Sends it through a Unix socket; does not wait until it is received.

        Raises:
            OSError: the other process has ended.
        """
        send_fds(receiver, [_ONCE], [self._descriptor])

    def close(self) -> None:
        """Gives this process's hold on the memory back."""
        os.close(self._descriptor)


class Outbox:
    """Sends parcels that each have one receiver, through memory that both map once and use again for later parcels.

    A parcel is then written and read at the speed of memory. The pages of new memory have to be cleared and mapped.
    """

    def __init__(self) -> None:
        self._kept: list[mmap] = []

    def send(self, receiver: socket, values: Values, blobs: Sequence[bytes] = ()) -> None:
        """Sends a parcel through a Unix socket; does not wait until it is received.

        Raises:
            OSError: the other process has ended.
        """
        parts = _parts(values, blobs)
        num_bytes = sum(map(len, parts))
        read = [number for number, memory in enumerate(self._kept) if memory[:1] == _READ]
        number = next((number for number in read if len(self._kept[number]) >= num_bytes), None)
        if number is not None:
            _fill(self._kept[number], parts)
            receiver.sendall(bytes([number]))
            return
        kept_bytes = sum(len(memory) for number, memory in enumerate(self._kept) if number not in read[:1])
        number = read[0] if read else len(self._kept)
        if kept_bytes + num_bytes > _KEPT_BYTES or number >= _ONCE[0]:
            parcel = Parcel(values, blobs)
            parcel.send(receiver)
            parcel.close()
            return
        descriptor = _memory()
        os.ftruncate(descriptor, -(-num_bytes // PAGESIZE) * PAGESIZE)
        self._kept[number : number + 1] = [mmap(descriptor, 0)]
        _fill(self._kept[number], parts)
        send_fds(receiver, [bytes([number])], [descriptor])
        os.close(descriptor)


class Inbox:
    """Receives what one process sends.

    Args:
        sender: connection to it.
    """

    def __init__(self, sender: socket) -> None:
        self._sender = sender
        self._kept: dict[bytes, mmap] = {}

    def receive(self) -> tuple[dict[str, Any], list[bytes]]:
        """Waits for a parcel and returns its values and blobs.

        Raises:
            EOFError: the other process has ended.
            OSError: likewise.
        """
        number, descriptors, _, _ = recv_fds(self._sender, 1, 1)
        if not number:
            raise EOFError
        for descriptor in descriptors:
            try:
                if number == _ONCE:
                    return _content(partial(_read, descriptor))
                self._kept[number] = mmap(descriptor, 0)
            finally:
                os.close(descriptor)
        memory = self._kept[number]
        content = _content(lambda start, end: memory[start:end])
        memory[:1] = _READ
        return content


def _content(read: Callable[[int, int], bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """The values and blobs of a parcel, whose bytes `read` gives."""
    start = _PREFIX_BYTES + int.from_bytes(read(1, _PREFIX_BYTES), "little")
    header, blobs = json.loads(read(_PREFIX_BYTES, start)), []
    for length in header["lengths"]:
        blobs.append(read(start, start + length))
        start += length
    return header["values"], blobs


def _memory() -> int:
    """A file descriptor of memory, or of a file without a name where the system has no such memory."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedelta")
    with TemporaryFile() as file:
        return os.dup(file.fileno())


def _parts(values: Values, blobs: Sequence[bytes]) -> list[bytes]:
    header = json.dumps({"values": values, "lengths": [len(blob) for blob in blobs]}).encode()
    return [b"\1", len(header).to_bytes(_PREFIX_BYTES - 1, "little"), header, *blobs]


def _fill(memory: mmap, parts: Sequence[bytes]) -> None:
    start = 0
    for part in parts:
        memory[start : start + len(part)] = part
        start += len(part)


def _write(descriptor: int, parts: Sequence[bytes]) -> None:
    for part in parts:
        view = memoryview(part).cast("B")
        while view:
            view = view[os.write(descriptor, view) :]


def _read(descriptor: int, start: int, end: int) -> bytes:
    """The bytes of a parcel from `start` to `end`; the system gives at most two gigabytes at a time."""
    content = os.pread(descriptor, end - start, start)
    return content if len(content) == end - start else content + _read(descriptor, start + len(content), end)
