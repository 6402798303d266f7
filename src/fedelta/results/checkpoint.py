"""Checkpoints: all that a run needs to continue with the same bits, in one safetensors file.

The file is replaced atomically after every round. Its header carries, beside the names, a JSON object with
the counters of the run and a SHA-256 over counters, names, types, shapes and bytes: a file that loads is the
file that was saved. There is no generator state in it, because streams are named (seeds.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from fedelta.errors import CheckpointError, SpecError
from fedelta.params import Params, ParamSpec
from fedelta.results.files import write_atomic
from fedelta.strategies.base import State

FORMAT = "fedelta-checkpoint-4"
_BY_CLIENT = ("kept", "remembered", "adrift")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at the end of a round.

    Args:
        round: the last finished round; 0 before the first.
        params: server params after that round, in the order of the spec.
        state: strategy state after that round.
        kept: what clients keep of the model for themselves, client id to its tensors.
        remembered: what clients remember for the strategy, client id to its tensors.
        adrift: what clients have trained and not sent yet, client id to its tensors.
        log_bytes: length of `rounds.jsonl` at that moment.
        ledger_bytes: length of `ledger.jsonl`.
        timing_bytes: length of `timings.jsonl`.
        run_fingerprint: text that differs between configurations that may not continue each other.
    """

    round: int
    params: Params
    state: State
    kept: Mapping[int, Params]
    remembered: Mapping[int, Params]
    adrift: Mapping[int, Params]
    log_bytes: int
    ledger_bytes: int
    timing_bytes: int
    run_fingerprint: str


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Replaces the checkpoint at `path`; on any exception the previous one survives.

    Raises:
        OSError: the disk is full or the directory cannot be written.
    """
    write_atomic(path, encode(checkpoint))


def load(path: Path, spec: ParamSpec | None = None, run_fingerprint: str | None = None) -> Checkpoint:
    """The checkpoint at `path`, complete and verified, on the CPU.

    Args:
        path: a file that `save` wrote.
        spec: what the model of this run tunes; None accepts any.
        run_fingerprint: of this run; None accepts any.

    Raises:
        CheckpointError: the file is missing, truncated, corrupt, or belongs to another run.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {str(path)!r}: {error.strerror or error}.") from error
    try:
        checkpoint = decode(content)
        _check_origin(checkpoint, spec, run_fingerprint)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {str(path)!r}: {error.message}", hint=error.hint) from error
    return checkpoint


def encode(checkpoint: Checkpoint) -> bytes:
    """`checkpoint` as the content of a safetensors file. Tensors of any device and layout are accepted."""
    own = {
        f"{part}/{client_id}": params for part in _BY_CLIENT for client_id, params in getattr(checkpoint, part).items()
    }
    tensors, same = _separate({"params": checkpoint.params, "state": checkpoint.state, **own})
    facts = {
        "format": FORMAT,
        "same": same,
        "params": list(checkpoint.params),
        "state": list(checkpoint.state),
        **{
            part: [(client_id, list(params)) for client_id, params in getattr(checkpoint, part).items()]
            for part in _BY_CLIENT
        },
        "counters": _counters(checkpoint),
    }
    described = json.dumps(facts)
    # One entry: safetensors writes several in random order, and equal checkpoints must be equal files.
    return bytes(safetensors.save(tensors, {"fedelta": f"{_digest(described, tensors)} {described}"}))


def decode(content: bytes) -> Checkpoint:
    """The checkpoint whose `encode` gave `content`.

    Raises:
        CheckpointError: `content` is anything else, if only by one bit.
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
        raise CheckpointError(f"has format {facts['format']!r}, this version reads {FORMAT!r}.")
    tensors |= {name: tensors[first] for name, first in facts["same"].items()}
    return Checkpoint(
        params={name: tensors[f"params/{name}"] for name in facts["params"]},
        state={name: tensors[f"state/{name}"] for name in facts["state"]},
        kept=_by_client("kept", facts, tensors),
        remembered=_by_client("remembered", facts, tensors),
        adrift=_by_client("adrift", facts, tensors),
        **facts["counters"],
    )


def _by_client(part: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[int, Params]:
    return {client_id: {name: tensors[f"{part}/{client_id}/{name}"] for name in own} for client_id, own in facts[part]}


def _check_origin(checkpoint: Checkpoint, spec: ParamSpec | None, run_fingerprint: str | None) -> None:
    if run_fingerprint is not None and checkpoint.run_fingerprint != run_fingerprint:
        raise CheckpointError(
            f"belongs to another run, or its data changed: fingerprint {checkpoint.run_fingerprint!r}, "
            f"expected {run_fingerprint!r}.",
            hint="`config.toml` or the data were changed after the run began; start a new run with another `--out`.",
        )
    if spec is None:
        return
    try:
        spec.check(checkpoint.params)
    except SpecError as error:
        raise CheckpointError(f"does not fit the model of this run: {error.message}.") from error
    if tuple(checkpoint.params) != spec.names:
        raise CheckpointError("does not fit the model of this run: its tensors come in another order.")


def _counters(checkpoint: Checkpoint) -> dict[str, Any]:
    # `Any`: numbers, text and None, as JSON holds them.
    return {name: value for name, value in vars(checkpoint).items() if name not in {"params", "state", *_BY_CLIENT}}


def _separate(parts: Mapping[str, Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Flat names to contiguous CPU tensors, no two in the same memory, as safetensors demands.

    A tensor that is in `parts` several times, such as what all clients of a cohort were sent, comes once; the second
    dictionary has its other names, and the one that it comes under.
    """
    separate: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    names: dict[int, str] = {}
    memories: set[int] = set()
    for part, tensors in parts.items():
        for short, tensor in tensors.items():
            name = f"{part}/{short}"
            if (first := names.setdefault(id(tensor), name)) != name:
                same[name] = first
                continue
            plain = tensor.detach().cpu().contiguous()
            memory = plain.untyped_storage().data_ptr()
            separate[name] = plain.clone() if memory in memories else plain
            memories.add(memory)
    return separate, same


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
