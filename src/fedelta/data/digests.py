"""Digests of a run's examples, to detect whether data have changed.

Rows in memory are digested in raw form; of rows that are decoded at every fetch the stored bytes are, so that nothing
has to be decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fedelta.data.batches import Examples
from fedelta.data.validation import RowsOf
from fedelta.modalities.base import Inputs
from fedelta.modalities.stores import Encoded, Stored
from fedelta.modalities.text import StoredTexts
from fedelta.modalities.words import StoredWords
from fedelta.params import bytes_of
from fedelta.tasks.targets import Targets

_CHUNK_ROWS = 512


def digest_of_inputs(inputs: Inputs) -> str:
    """SHA-256 of all rows in order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for part in _parts(inputs):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def digest_of_targets(targets: Targets) -> str:
    """SHA-256 of all targets in order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for rows in torch.arange(len(targets)).split(_CHUNK_ROWS):
        for part in _tensor(targets.fetch(rows)):
            digest.update(part)
    return digest.hexdigest()


def digests_of(examples: Examples, what: str) -> dict[str, str]:
    """Digests of inputs and targets by name, such as "training examples"; `what` is "training" or "test"."""
    return {
        f"{what} examples": digest_of_inputs(examples.inputs),
        f"{what} labels": digest_of_targets(examples.targets),
    }


def _parts(inputs: Inputs) -> Iterator[bytes | memoryview]:
    match inputs:
        case Stored():
            yield from _tensor(inputs.raw)
        case StoredTexts():
            yield from _tensor(inputs.token_ids)
            yield from _tensor(inputs.ends)
        case StoredWords():
            for part in (inputs.tokens, inputs.starts):
                yield from _tensor(part.values)
                yield from _tensor(part.ends)
        case Encoded():
            for values in inputs.column.chunks():
                yield from map(_stored, values)
        case RowsOf():
            yield digest_of_inputs(inputs.inputs).encode()
            yield from _tensor(inputs.rows)
        case _:
            for rows in torch.arange(len(inputs)).split(_CHUNK_ROWS):
                for name, tensor in sorted(inputs.fetch(rows).items()):
                    yield name.encode()
                    yield from _tensor(tensor)


def _tensor(tensor: Tensor) -> Iterator[bytes | memoryview]:
    yield f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    yield bytes_of(tensor)


def _stored(value: object) -> bytes:
    """The content of a value: its bytes, those of the file that it names, or its `repr`."""
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        return content if isinstance(content, bytes) else _stored(path)
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and Path(value).is_file():
        return Path(value).read_bytes()
    return repr(value).encode()
