"""Our messages as Flower's records: the manifest in a `ConfigRecord`, all blobs in one array of bytes.

One array, because Flower sends each array as objects of its own: a hundred small ones cost 1.7 times their bytes.
"""

from __future__ import annotations

import io
import secrets

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedelta.errors import PayloadError
from fedelta.runtimes.remote.messages import Message, pack, unpack

_MANIFEST, _TEXT, _NONCE = "manifest", "text", "nonce"
_BLOBS = "blobs"
_HEADER_BYTES = 128  # NumPy's, of one axis: magic, version and a description, filled up with blanks


def wrap(message: Message) -> RecordDict:
    """The records that carry a message.

    A nonce makes the ids that Flower computes from the content unguessable: a site could answer for another one if it
    knew the id of that one's message.
    """
    text, packed = pack(message)
    manifest = ConfigRecord({_TEXT: text, _NONCE: secrets.token_hex(16)})
    blobs = ArrayRecord({_BLOBS: Array(np.frombuffer(packed, np.uint8))})
    return RecordDict({_MANIFEST: manifest, _BLOBS: blobs})


def unwrap(records: RecordDict, max_bytes: int) -> Message:
    """The message that `wrap` gave; its blobs are views of the records' bytes.

    NumPy reads nothing here: a header from the wire may claim any size.

    Raises:
        PayloadError: the records are others, larger than `max_bytes`, or damaged.
    """
    manifest, blobs = records.get(_MANIFEST), records.get(_BLOBS)
    if not (isinstance(manifest, ConfigRecord) and isinstance(blobs, ArrayRecord) and list(blobs) == [_BLOBS]):
        raise PayloadError(f"a message has records {sorted(map(str, records))[:5]}, expected {[_BLOBS, _MANIFEST]}.")
    return unpack(manifest.get(_TEXT), _values(blobs[_BLOBS].data, max_bytes), max_bytes)


def travelled_bytes(records: RecordDict) -> int:
    """The length of the manifest and the blobs of a message that `unwrap` took, as Flower sent them."""
    manifest, blobs = records[_MANIFEST], records[_BLOBS]
    text = manifest[_TEXT] if isinstance(manifest, ConfigRecord) else ""
    array = blobs[_BLOBS] if isinstance(blobs, ArrayRecord) else None
    return len(str(text)) + (0 if array is None else len(array.data))


def _values(data: bytes, max_bytes: int) -> memoryview:
    """The bytes behind the header, which must be the one that NumPy writes for as many bytes."""
    if len(data) > max_bytes + _HEADER_BYTES:
        raise PayloadError(f"a message has {len(data)} bytes, more than the {max_bytes} that are allowed.")
    if len(data) < _HEADER_BYTES or data[:_HEADER_BYTES] != _header(len(data) - _HEADER_BYTES):
        raise PayloadError("a message's blobs are no array of bytes.")
    return memoryview(data)[_HEADER_BYTES:]


def _header(num_bytes: int) -> bytes:
    """What NumPy writes in front of `num_bytes` bytes."""
    file = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (num_bytes,)}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()
