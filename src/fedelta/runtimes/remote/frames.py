"""Messages between two processes of a site, over a local socket. Imports no torch.

"FDLM" | length of the manifest, 8 bytes | length of the blobs, 8 bytes | manifest | blobs
"""

from __future__ import annotations

import struct
from socket import socket

from fedelta.errors import PayloadError
from fedelta.runtimes.remote.messages import MAX_MANIFEST_BYTES, Message, pack, unpack

_MAGIC = b"FDLM"
_HEADER = struct.Struct(">4sQQ")
_CHUNK_BYTES = 2**20
SECRET_BYTES = 32


def send(connection: socket, message: Message) -> None:
    """Sends a message.

    Raises:
        OSError: the other process has ended.
    """
    text, blobs = pack(message)
    manifest = text.encode()
    connection.sendall(_HEADER.pack(_MAGIC, len(manifest), len(blobs)) + manifest)
    connection.sendall(blobs)


def receive(connection: socket, max_bytes: int) -> Message:
    """The next message.

    Args:
        connection: to the other process.
        max_bytes: largest sum of the lengths of the blobs.

    Raises:
        PayloadError: what comes is no message, or it is too large; nothing of it should be read any more.
        ConnectionError: the other process has ended.
        TimeoutError: nothing has come for as long as the connection's time-out.
    """
    magic, manifest_bytes, blob_bytes = _HEADER.unpack(read_exactly(connection, _HEADER.size))
    if magic != _MAGIC:
        raise PayloadError(f"a message begins with {magic!r}, expected {_MAGIC!r}.")
    if manifest_bytes > MAX_MANIFEST_BYTES or blob_bytes > max_bytes:
        raise PayloadError(
            f"a message announces {manifest_bytes} bytes of manifest and {blob_bytes} of blobs, more than the "
            f"{MAX_MANIFEST_BYTES} and {max_bytes} that are allowed.",
            hint="`worker.max_message_mib` in the site's settings is the limit.",
        )
    try:
        text = read_exactly(connection, manifest_bytes).decode()
    except UnicodeDecodeError as error:
        raise PayloadError("a manifest is no text in UTF-8.") from error
    return unpack(text, read_exactly(connection, blob_bytes), max_bytes)


def read_exactly(connection: socket, num_bytes: int) -> bytes:
    """So many bytes; memory is taken only as they come.

    Raises:
        ConnectionError: the other process has ended.
    """
    content = bytearray()
    while len(content) < num_bytes:
        part = connection.recv(min(_CHUNK_BYTES, num_bytes - len(content)))
        if not part:
            raise ConnectionError(f"the connection ended after {len(content)} of {num_bytes} bytes")
        content += part
    return bytes(content)
