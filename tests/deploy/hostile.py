"""A site with a registered key that means it ill: `python -m tests.deploy.hostile FOLDER [DEED]`.

It is `fedelta site run`, but what its worker answers is changed before it is sent: in the way of `DEED`, or when it
trains in another way in each round (`BY_ROUND`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Array, ConfigRecord
from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body
from xxhash import xxh3_64_intdigest

from fedelta.deployment.site import running as site
from fedelta.runtimes.flower import connection
from fedelta.runtimes.remote.messages import Message

MIB = 2**20
Deed = Callable[[Message], Message]


def _corrupt(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    """Every payload has a few other bytes, in its header and in the middle."""
    for index, blob in enumerate(blobs):
        middle = len(blob) // 2
        blobs[index] = blob[:2] + b"\xff\xff" + blob[4:middle] + bytes(255 - byte for byte in blob[middle:])


def _other_tensors(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    """Payloads in order, but of other tensors: names do not travel, their fingerprint does."""
    blobs[:] = [_sealed(blob[:5] + bytes(8) + blob[13:]) for blob in blobs]


def _oversized(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    """Payloads of 8 MiB of zeros."""
    blobs[:] = [bytes(8 * MIB) for _ in blobs]


def _for_others(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    """It answers for the clients of another site, and twice for its own."""
    clients = manifest["clients"]
    manifest["clients"] = [*clients, *clients, *({**client, "id": 0} for client in clients)]


def _wrong_types(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    for client in manifest["clients"]:
        client.update(num_examples="many", train_loss=None, blob=10**6, version=-1)


def _claims(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    """It claims to have more examples than there are atoms."""
    for client in manifest["clients"]:
        client["num_examples"] = 10**80


def _not_finite(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    """Payloads in order, but for their last numbers: all bits are set, which is NaN as a float32."""
    blobs[:] = [_sealed(blob[:-104] + b"\xff" * 100 + blob[-4:]) for blob in blobs]


def _sealed(payload: bytes) -> bytes:
    """A payload with the checksum that fits its content."""
    content = payload[:-4]
    return content + (xxh3_64_intdigest(content) % 2**32).to_bytes(4, "little")


def _other_version(answer: Message) -> Message:
    if answer.kind != "described":
        return answer
    return replace(answer, manifest={**answer.manifest, "version": "99.9.9"})


def _honest(manifest: dict[str, Any], blobs: list[bytes]) -> None:
    """As the worker has answered."""


DEEDS: dict[str, Deed] = {"other version": _other_version}
# In round 8 it sends an array whose header is false, in round 9 what Flower cannot read (`_change_records`); from round
# 10 on it is honest.
BY_ROUND = dict(enumerate((_corrupt, _other_tensors, _oversized, _for_others, _wrong_types, _claims, _not_finite), 1))


def changed(answer: Message) -> Message:
    """The answer to a message `train` in the way of its round; any other answer as it is."""
    if answer.kind != "trained":
        return answer
    manifest, blobs = deepcopy(dict(answer.manifest)), [bytes(blob) for blob in answer.blobs]
    BY_ROUND.get(manifest["round"], _honest)(manifest, blobs)
    return replace(answer, manifest=manifest, blobs=tuple(blobs))


class _Unreadable(ConfigRecord):
    """A record whose bytes are none of Flower's."""

    __qualname__ = "ConfigRecord"  # Flower writes it into the bytes

    def deflate(self) -> bytes:
        return add_header_to_object_body(b"\xff" * 9, self)


def _falsify_header(array: Array) -> None:
    """The array's header claims a million times what it holds."""
    length = str(len(array.data) - 128).encode()
    padded = array.data[:128].replace(length + b",), }", length + b"000000,), }", 1)
    array.data = padded[:127].replace(b"      \n", b"\n") + b"\n" + array.data[128:]
    array.shape = [int(length) * 10**6]


def _change_records() -> None:
    """Changes the records of Flower that carry an answer, in rounds 8 and 9."""
    honest = connection.wrap

    def wrap(message: Message) -> Any:
        records = honest(message)
        round = message.manifest["round"] if message.kind == "trained" else 0
        if round == 8:
            _falsify_header(records["blobs"]["blobs"])
        elif round == 9:
            records["manifest"] = _Unreadable()
        return records

    connection.wrap = wrap


def main(folder: str, name: str = "") -> None:
    """Serves the site in `folder`."""
    deed, ask = DEEDS.get(name, changed), site.ask
    site.ask = lambda folder, message: deed(ask(folder, message))
    _change_records()
    site.run_site(Path(folder), lambda line: print(line, flush=True))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:3])
