"""Checkpoints: everything that a run needs to continue with the same bits, in one safetensors file.

The file is replaced atomically after every round. What clients keep is not in it but where the clients are, and a mark
says which state of that belongs to it. Its header carries, beside the names, a JSON object with
the counters of the run and a SHA-256 over counters, names, types, shapes and bytes: a file that loads is the
file that was saved. There is no generator state in it, because streams are named (seeds.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from fedelta.codecs.changes import Mirror
from fedelta.durable import write_atomic
from fedelta.errors import CheckpointError, FormatError, SpecError
from fedelta.params import Params, ParamSpec
from fedelta.privacy.state import PrivacyState
from fedelta.record.files import Mark
from fedelta.record.origin import Origin
from fedelta.strategies.base import State

FORMAT = "fedelta-checkpoint-8"
# Advice for a run directory of another version.
OTHER_VERSION = "use the version that environment.json names, or run config.toml again with this one."


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at the end of a round.

    Args:
        round: the last finished round; 0 before the first.
        params: server params after that round, in the order of the spec.
        state: strategy state after that round.
        claimed: client id to the number of examples in its last accepted reply.
        memory_mark: mark of the snapshot of the clients' memories in that round (`Runtime.snapshot`).
        logs: name of each log to its length and digest at that moment; without `timings.jsonl`, which may be lost.
        origin: the settings and inputs that the run started from.
        privacy: what has been released by the end of that round.
        mirror: what clients hold at the end of that round, if downloads carry changes; else empty.
    """

    round: int
    params: Params
    state: State
    claimed: Mapping[int, int]
    memory_mark: str
    logs: Mapping[str, Mark] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    privacy: PrivacyState = field(default_factory=PrivacyState)
    mirror: Mirror = field(default_factory=Mirror)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint to `path`; after an exception the previous one is unchanged.

    Raises:
        OSError: the disk is full or the directory cannot be written.
    """
    write_atomic(path, encode(checkpoint))


def load(path: Path) -> Checkpoint:
    """The verified checkpoint at `path`, on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt; a `FormatError` if another version wrote it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {str(path)!r}: {error.strerror or error}.") from error
    try:
        return decode(content)
    except CheckpointError as error:
        raise type(error)(f"checkpoint {str(path)!r}: {error.message}", hint=error.hint) from error


def check_fit(path: Path, checkpoint: Checkpoint, spec: ParamSpec) -> None:
    """Raises if the params of the checkpoint at `path` are not those that the model of the run tunes.

    Raises:
        CheckpointError: names, shapes or their order differ.
    """
    problem = ""
    try:
        spec.check(checkpoint.params)
    except SpecError as error:
        problem = error.message
    if not problem and tuple(checkpoint.params) != spec.names:
        problem = "its tensors come in another order"
    if problem:
        raise CheckpointError(f"checkpoint {str(path)!r}: does not fit the model of this run: {problem}.")


def encode(checkpoint: Checkpoint) -> bytes:
    """`checkpoint` as the content of a safetensors file; its tensors may have any device and layout."""
    mirrored, mirror = checkpoint.mirror.to_state()
    tensors = _separate({"params": checkpoint.params, "state": checkpoint.state, "mirror": mirrored})
    facts = {
        "format": FORMAT,
        "round": checkpoint.round,
        "params": list(checkpoint.params),
        "state": list(checkpoint.state),
        "claimed": list(checkpoint.claimed.items()),
        "memory_mark": checkpoint.memory_mark,
        "logs": {name: vars(mark) for name, mark in checkpoint.logs.items()},
        "origin": vars(checkpoint.origin),
        "privacy": checkpoint.privacy.as_record(),
        "mirror": mirror,
    }
    described = json.dumps(facts)
    # One entry, because safetensors writes several in random order, and equal checkpoints must be equal files:
    # findings/safetensors_order.sh.
    return bytes(safetensors.save(tensors, {"fedelta": f"{_digest(described, tensors)} {described}"}))


def decode(content: bytes) -> Checkpoint:
    """The checkpoint whose `encode` gave `content`.

    Raises:
        CheckpointError: `content` differs from it, even by one bit.
    """
    try:
        tensors = safetensors.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]["fedelta"]
        expected, described = metadata.split(" ", maxsplit=1)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _corrupt(f"no complete checkpoint file ({len(content)} bytes read: {error})") from error
    if _digest(described, tensors) != expected:
        raise _corrupt("its content does not match its checksum")
    facts = json.loads(described)
    if facts["format"] != FORMAT:
        raise FormatError(
            f"has format {facts['format']!r}, this version reads {FORMAT!r}.",
            hint=OTHER_VERSION,
        )
    return Checkpoint(
        round=facts["round"],
        params={name: tensors[f"params/{name}"] for name in facts["params"]},
        state={name: tensors[f"state/{name}"] for name in facts["state"]},
        claimed=dict(facts["claimed"]),
        memory_mark=facts["memory_mark"],
        logs={name: Mark(**mark) for name, mark in facts["logs"].items()},
        origin=Origin(**facts["origin"]),
        privacy=PrivacyState.from_record(facts["privacy"]),
        mirror=Mirror.from_state(
            {name.removeprefix("mirror/"): tensor for name, tensor in tensors.items() if name.startswith("mirror/")},
            facts["mirror"],
        ),
    )


def _separate(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Flat names to contiguous CPU tensors that share no memory, as safetensors requires."""
    separate: dict[str, Tensor] = {}
    memories: set[int] = set()
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            plain = tensor.detach().cpu().contiguous()
            memory = plain.untyped_storage().data_ptr()
            separate[f"{part}/{name}"] = plain.clone() if memory in memories else plain
            memories.add(memory)
    return separate


def _digest(described: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(described.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _corrupt(what: str) -> CheckpointError:
    return CheckpointError(
        f"{what}; it was truncated or damaged.", hint="restore the file from a copy, or start the run anew."
    )
