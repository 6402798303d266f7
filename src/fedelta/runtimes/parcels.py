"""Parcels: values between a run and its worker processes, through shared memory without a name.

A parcel is JSON values and blobs of bytes in a piece of memory that the kernel frees with the last process that has it,
however the processes end. Only its file descriptor goes through the connection. Nothing in it is executed.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import accumulate, pairwise
from socket import recv_fds, send_fds, socket
from tempfile import TemporaryFile
from typing import Any

_HEADER_BYTES = 8

Values = Mapping[str, Any]  # Any: JSON values


class Parcel:
    """Values and blobs, ready to be sent to any number of processes.

    Args:
        values: JSON values by name.
        blobs: bytes that the values refer to by index.
    """

    def __init__(self, values: Values, blobs: Sequence[bytes] = ()) -> None:
        header = json.dumps({"values": values, "lengths": [len(blob) for blob in blobs]}).encode()
        self._descriptor = _memory()
        for part in (len(header).to_bytes(_HEADER_BYTES, "little"), header, *blobs):
            _write(self._descriptor, part)

    def send(self, receiver: socket) -> None:
        """Sends it through a Unix socket; does not wait until it is received.

        Raises:
            OSError: the other process has ended.
        """
        send_fds(receiver, [b"p"], [self._descriptor])

    def close(self) -> None:
        """Gives this process's hold on the memory back."""
        os.close(self._descriptor)


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
        with closing(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)) as memory:
            start = _HEADER_BYTES + int.from_bytes(memory[:_HEADER_BYTES], "little")
            header = json.loads(memory[_HEADER_BYTES:start])
            places = pairwise(accumulate(header["lengths"], initial=start))
            return header["values"], [memory[begin:end] for begin, end in places]
    finally:
        os.close(descriptor)


def _memory() -> int:
    """A file descriptor of memory, or of a file without a name where the system has no such memory."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedelta")
    with TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(descriptor: int, part: bytes) -> None:
    view = memoryview(part).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]
