"""A message survives the wire; what is no message is refused before anything is made of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as draw

from fedelta.errors import PayloadError
from fedelta.runtimes.remote.messages import MAX_MANIFEST_BYTES, Message, pack, packed_bytes, unpack

VALUES = draw.recursive(
    draw.none() | draw.booleans() | draw.integers() | draw.text(),
    lambda inner: draw.lists(inner, max_size=3) | draw.dictionaries(draw.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    draw.text(), draw.dictionaries(draw.text(), VALUES, max_size=4), draw.lists(draw.binary(max_size=20), max_size=4)
)
def test_a_message_comes_back_as_it_was(kind: str, manifest: dict[str, object], blobs: list[bytes]):
    text, packed = pack(Message(kind, manifest, blobs))
    message = unpack(text, packed, 100)
    assert (message.kind, message.manifest, [bytes(blob) for blob in message.blobs]) == (kind, manifest, blobs)
    assert packed_bytes(message) == len(text) + len(packed)


def manifest(**other: object) -> str:
    return json.dumps({"kind": "train", "lengths": [2], "manifest": {}} | other)


@pytest.mark.parametrize(
    ("text", "packed", "message"),
    [
        (manifest(), b"123456789", r"has 9 bytes, more than the 8 that are allowed"),
        (manifest(), b"123", r"has 3 bytes, its manifest lists 2"),
        (manifest(lengths=[3, -1]), b"12", r"lengths that are not whole numbers of 0 or more"),
        (manifest(lengths=[True, 1]), b"12", r"lengths that are not whole numbers of 0 or more"),
        (manifest(lengths=[2.0]), b"12", r"lengths that are not whole numbers of 0 or more"),
        (manifest(lengths=2), b"12", r"lacks `kind`, `lengths` or `manifest`"),
        (manifest(kind=1), b"12", r"lacks `kind`, `lengths` or `manifest`"),
        (manifest(manifest=[]), b"12", r"lacks `kind`, `lengths` or `manifest`"),
        ("[]", b"", r"lacks `kind`, `lengths` or `manifest`"),
        ("{", b"", r"a manifest is not JSON"),
        ("[" * 100_000, b"", r"a manifest is not JSON"),
        (manifest(manifest={"clients": json.loads("[" * 40 + "]" * 40)}), b"12", r"more than 32 deep"),
        (manifest(manifest={"reason": "\ud800"}), b"12", r"a text that is no Unicode"),
        (manifest(manifest={"clients": [{"\udfff": 1}]}), b"12", r"a text that is no Unicode"),
        (b"{}", b"", r"a manifest is no text"),
        (None, b"", r"a manifest is no text"),
        (" " * (MAX_MANIFEST_BYTES + 1), b"", r"a manifest is no text of at most 16777216 characters"),
    ],
)
def test_what_is_no_message_is_refused(text: object, packed: bytes, message: str):
    with pytest.raises(PayloadError, match=message):
        unpack(text, packed, 8)


def test_the_blobs_of_a_message_are_not_copied():
    text, packed = pack(Message("train", {}, (b"ab", b"c")))
    assert all(isinstance(blob, memoryview) and blob.obj is packed for blob in unpack(text, packed, 100).blobs)
