"""Packs, answers, sums and errors as JSON values and blobs, for a parcel."""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import count
from typing import Any

from fedelta import errors
from fedelta.errors import FedeltaError, text_of
from fedelta.federation.measuring import BatchSums
from fedelta.federation.memory import Memory
from fedelta.federation.memory_files import packed, unpacked
from fedelta.federation.packs import Answer, Pack
from fedelta.federation.records import Fault, Reply
from fedelta.plugins import suspect
from fedelta.tasks.base import Sums

Values = dict[str, Any]  # Any: JSON values


def pack_values(packs: Sequence[Pack], downloads: Mapping[bytes, int]) -> tuple[Values, list[bytes]]:
    """Packs of one round, without their downloads.

    Args:
        packs: to be sent.
        downloads: payload to its number among the downloads of the round, which the other process has already.
    """
    uploads = list(dict.fromkeys(names for pack in packs for names in pack.upload.values()))
    place_of = {names: place for place, names in enumerate(uploads)}
    clients = [
        [
            [client_id, downloads[payload], place_of[pack.upload[client_id]]]
            for client_id, payload in pack.payloads.items()
        ]
        for pack in packs
    ]
    memories = [pack.memories[client_id] for pack in packs for client_id in pack.payloads]
    kept = [place for place, memory in enumerate(memories) if not memory.is_empty]
    values = {"round": packs[0].round, "packs": clients, "uploads": uploads, "kept": kept}
    return values, [packed(memories[place].flat()) for place in kept]


def packs_of(values: Values, blobs: Sequence[bytes], downloads: Sequence[bytes]) -> list[Pack]:
    """The inverse of `pack_values`."""
    uploads = [tuple(names) for names in values["uploads"]]
    kept, nothing = dict(zip(values["kept"], blobs, strict=True)), Memory()
    places = count()
    return [
        Pack(
            values["round"],
            upload={client_id: uploads[place] for client_id, _, place in clients},
            payloads={client_id: downloads[number] for client_id, number, _ in clients},
            memories={
                client_id: _memory(kept[place]) if (place := next(places)) in kept else nothing
                for client_id, _, _ in clients
            },
        )
        for clients in values["packs"]
    ]


def answer_values(answers: Sequence[Answer]) -> tuple[list[list[Any]], list[bytes]]:
    """The answers of packs: a row of values for each, and the payloads and memories."""
    rows, blobs = [], []
    for answer in answers:
        reply, memory = answer.reply, answer.memory
        blobs.append(reply.payload)
        num_memories = None if memory is None else int(not memory.is_empty)
        if memory is not None and num_memories:
            blobs.append(packed(memory.flat()))
        fault = None if reply.fault is None else asdict(reply.fault)
        rows.append(
            [reply.client_id, reply.num_examples, dict(reply.metrics), fault, reply.simulated_seconds, num_memories]
        )
    return rows, blobs


def answers_of(rows: Sequence[Sequence[Any]], blobs: Sequence[bytes]) -> list[Answer]:
    """The inverse of `answer_values`."""
    answers, left, nothing = [], iter(blobs), Memory()
    for client_id, num_examples, metrics, fault, simulated_seconds, num_memories in rows:
        payload = next(left)
        reply = Reply(client_id, num_examples, payload, metrics, fault and Fault(**fault), simulated_seconds)
        memory = None if num_memories is None else _memory(next(left)) if num_memories else nothing
        answers.append(Answer(reply, memory))
    return answers


def sums_values(batches: BatchSums) -> list[list[Values]]:
    """The sums of each batch at each exit; JSON keeps every bit of them."""
    return [[dict(sums.totals) for sums in at_exits] for at_exits in batches]


def batch_sums_of(values: Sequence[Sequence[Values]]) -> BatchSums:
    """The inverse of `sums_values`."""
    return [
        [Sums({name: (total, weight) for name, (total, weight) in totals.items()}) for totals in at_exits]
        for at_exits in values
    ]


def error_values(error: BaseException) -> Values:
    """What a worker process reports of an exception; one that arose in a plug-in is reported as that plug-in's."""
    error = suspect(error) or error
    is_ours = isinstance(error, FedeltaError)
    known = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ in ("builtins", errors.__name__))
    return {
        "kind": known,
        "name": type(error).__name__,
        "message": error.message if isinstance(error, FedeltaError) else text_of(error),
        "hint": error.hint if isinstance(error, FedeltaError) else None,
        "traceback": None if is_ours else "".join(traceback.format_exception(error)),
    }


def error_of(values: Values) -> BaseException:
    """The exception that `error_values` describes; one of another library becomes the built-in one that it is."""
    kind, message = values["kind"], values["message"]
    if kind in vars(errors):
        ours: FedeltaError = vars(errors)[kind].__new__(vars(errors)[kind])  # its own arguments may be others
        FedeltaError.__init__(ours, message, hint=values["hint"])
        return ours
    try:
        error: BaseException = vars(builtins)[kind](
            message if kind == values["name"] else f"{values['name']}: {message}"
        )
    except TypeError:  # an exception that takes more than a text, such as `UnicodeDecodeError`
        error = RuntimeError(f"{values['name']}: {message}")
    error.add_note(f"In a worker process:\n{values['traceback']}")
    return error


def _memory(content: bytes) -> Memory:
    return Memory.from_flat(unpacked(content))
