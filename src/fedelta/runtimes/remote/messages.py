"""Messages between server and sites: a manifest of JSON values, and blobs that travel as one array of bytes.

The manifest lists the length of each blob. A message comes from an untrusted sender, so everything is checked before it
is used, and nothing in it is executed. This module imports no torch: the process that passes messages on at a site
starts anew for every message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from fedelta.errors import PayloadError

PROTOCOL = 1
REFUSED = "refused"
# Causes that a refusal may have: the site does not know the run (any more); it could not work, which may be over soon.
UNPREPARED, FAILED = "unprepared", "site failed"
MAX_MANIFEST_BYTES = 16 * 2**20
_MAX_DEPTH = 32  # ours have 5
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Message:
    """A request of the server, or the answer of a site.

    Args:
        kind: what is asked or answered, such as "train".
        manifest: JSON values by name.
        blobs: bytes that the manifest refers to by index.
    """

    kind: str
    manifest: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON values
    blobs: Sequence[bytes | memoryview] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(map(len, self.blobs))


def pack(message: Message) -> tuple[str, bytes]:
    """The manifest as JSON text, and all blobs one after the other."""
    return _text(message), b"".join(message.blobs)


def packed_bytes(message: Message) -> int:
    """The length of the message as `pack` gives it."""
    return len(_text(message)) + message.num_bytes


def _text(message: Message) -> str:
    lengths = [len(blob) for blob in message.blobs]
    return json.dumps({"kind": message.kind, "lengths": lengths, "manifest": message.manifest}, allow_nan=False)


def unpack(text: object, packed: bytes | memoryview, max_bytes: int) -> Message:
    """The message that `pack` gave; its blobs are views of `packed`.

    Raises:
        PayloadError: it is too large, no JSON, or its parts do not fit each other.
    """
    if len(packed) > max_bytes:
        raise PayloadError(f"a message has {len(packed)} bytes, more than the {max_bytes} that are allowed.")
    if not isinstance(text, str) or len(text) > MAX_MANIFEST_BYTES:
        raise PayloadError(f"a manifest is no text of at most {MAX_MANIFEST_BYTES} characters.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"a manifest is not JSON: {error}") from error
    _check_values(content)
    kind, lengths, manifest = _parts(content)
    if sum(lengths) != len(packed):
        raise PayloadError(f"a message has {len(packed)} bytes, its manifest lists {sum(lengths)}.")
    view = memoryview(packed)
    return Message(kind, manifest, tuple(view[start:end] for start, end in pairwise(accumulate(lengths, initial=0))))


def _check_values(content: object) -> None:
    """Refuses texts that no file takes, and values too deep inside of each other to be printed."""
    values = [content]
    for _ in range(_MAX_DEPTH):
        if any(isinstance(value, str) and _SURROGATE.search(value) for value in values):
            raise PayloadError("a manifest has a text that is no Unicode: half of a pair of code units.")
        values = [part for value in values if isinstance(value, dict | list) for part in _inside(value)]
        if not values:
            return
    raise PayloadError(f"a manifest has values inside of each other, more than {_MAX_DEPTH} deep.")


def _inside(value: dict[str, object] | list[object]) -> list[object]:
    """The values of a list, or the keys and values of a dictionary."""
    return [*value, *value.values()] if isinstance(value, dict) else value


def _parts(content: object) -> tuple[str, list[int], dict[str, Any]]:
    """Kind, lengths and manifest, of the right types."""
    parts = content if isinstance(content, dict) else {}
    kind, lengths, manifest = parts.get("kind"), parts.get("lengths"), parts.get("manifest")
    if not (isinstance(kind, str) and isinstance(lengths, list) and isinstance(manifest, dict)):
        raise PayloadError("a manifest lacks `kind`, `lengths` or `manifest`.")
    if not all(type(length) is int and length >= 0 for length in lengths):
        raise PayloadError("a manifest has lengths that are not whole numbers of 0 or more.")
    return kind, lengths, manifest
