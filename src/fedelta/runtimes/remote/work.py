"""The message with a site's work in a round, and what its answer says of each client. No answer is trusted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from fedelta.codecs.base import most_bytes
from fedelta.codecs.cast import Cast
from fedelta.codecs.wire import encode
from fedelta.errors import PayloadError
from fedelta.federation.records import Cause, Fault, Reply
from fedelta.params import ParamSpec
from fedelta.runtimes.remote.answers import one_line
from fedelta.runtimes.remote.messages import FAILED, REFUSED, Message
from fedelta.runtimes.remote.profiles import expected, reason_of
from fedelta.runtimes.remote.versions import Versions
from fedelta.strategies.base import RoundPlan

Blobs = Sequence[bytes | memoryview]
# What a site may say about a client; everything else counts as a refused reply.
_CAUSES: Mapping[object, Cause] = {"forgot": "forgot", FAILED: "site failed"}


class Part(NamedTuple):
    """A site's part in a round.

    Args:
        plan: of the round.
        payloads: client id to its download.
        client_ids: the site's clients that are asked, ascending.
    """

    plan: RoundPlan
    payloads: Mapping[int, bytes]
    client_ids: Sequence[int]


class ClientAnswer(NamedTuple):
    """What a site says of one client.

    Args:
        reply: for the round loop, which checks its numbers; without the payload.
        payload: of the reply; a view of the message, which is copied when it is needed.
        version: of the memory that the client has if the reply is accepted.
    """

    reply: Reply
    payload: bytes | memoryview = b""
    version: int = 0


def work(run: str, part: Part, versions: Versions, wire: ParamSpec) -> Message:
    """The message with the work of a site: each distinct download and each list of names once."""
    plan = part.plan
    blobs: dict[bytes, int] = {}
    uploads: dict[tuple[str, ...], int] = {}
    clients = []
    for client_id in part.client_ids:
        entry: dict[str, Any] = {
            "id": client_id,
            "download": blobs.setdefault(part.payloads[client_id], len(blobs)),
            "upload": uploads.setdefault(tuple(plan.upload[client_id]), len(uploads)),
            "version": versions.of(client_id),
            "keeps_adrift": versions.keeps_adrift(client_id),
        }
        remembered = versions.remembered(client_id)
        if remembered is not None and all(name in wire for name in remembered):
            payload, _ = encode(remembered, wire, Cast())  # float32: the bits that the client had
            entry["remembered"] = blobs.setdefault(payload, len(blobs))
        clients.append(entry)
    manifest = {
        "run": run,
        "round": plan.round,
        "num_clients": plan.num_clients,
        "uploads": [list(names) for names in uploads],
        "clients": clients,
    }
    return Message("train", manifest, tuple(blobs))


def client_answers(part: Part, wire: ParamSpec, answer: Message) -> list[ClientAnswer]:
    """What a site's answer says of each of its clients; of one that it leaves out, that it has failed.

    Raises:
        PayloadError: the answer as a whole cannot be used, for example because it holds a client of another site.
    """
    manifest = usable(answer, "trained")
    round, entries = part.plan.round, manifest.get("clients")
    if manifest.get("round") != round:
        raise PayloadError(f"it answers for round {manifest.get('round')!r:.40}, expected {round}")
    if not isinstance(entries, list) or len(entries) > len(part.client_ids):
        raise PayloadError(f"it answers with no list of at most {len(part.client_ids)} clients")
    answers = [_client_answer(part, wire, entry, answer.blobs) for entry in entries]
    missing = sorted(set(part.client_ids).difference(answer.reply.client_id for answer in answers))
    fault = Fault("its site has answered without this client", "site failed")
    return [*answers, *(ClientAnswer(Reply(client_id, 0, b"", fault=fault)) for client_id in missing)]


def usable(answer: Message, kind: str) -> Mapping[str, Any]:
    """The manifest of an answer to work; a site that refuses work has failed, which need not be so in the next round.

    Raises:
        PayloadError: it refuses, or the answer is of another kind.
    """
    if answer.kind == REFUSED:
        raise PayloadError(reason_of(answer))
    return expected(answer, kind)


def _client_answer(part: Part, wire: ParamSpec, entry: Any, blobs: Blobs) -> ClientAnswer:  # Any: JSON
    """What an entry says of its client; with a fault if its values cannot be used."""
    is_asked = isinstance(entry, dict) and type(entry.get("id")) is int and entry["id"] in part.client_ids
    if not is_asked:
        raise PayloadError(f"it answers for {entry!r:.60}, which is none of the clients that it was asked for")
    client_id: int = entry["id"]
    if (fault := entry.get("fault")) is not None:
        return ClientAnswer(Reply(client_id, 0, b"", fault=_fault(fault)))
    try:
        payload = _payload(wire, part.plan.upload[client_id], entry.get("blob"), blobs)
        version = entry.get("version")
        if type(version) is not int or version not in (0, part.plan.round):
            raise PayloadError(f"`version` is {version!r:.40}, expected 0 or {part.plan.round}")
    except PayloadError as error:
        return ClientAnswer(Reply(client_id, 0, b"", fault=Fault(error.message, "site failed")))
    metrics = {"train_loss": entry.get("train_loss")}
    return ClientAnswer(Reply(client_id, entry.get("num_examples"), b"", metrics), payload, version)


def _fault(fault: object) -> Fault:
    """Why a client has no reply, as its site says."""
    values = fault if isinstance(fault, dict) else {}
    cause = values.get("cause")
    reason = one_line(values, "reason") or "its site gives no reason"
    return Fault(reason, _CAUSES.get(cause, "refused") if isinstance(cause, str) else "refused")


def _payload(wire: ParamSpec, names: Collection[str], index: object, blobs: Blobs) -> bytes | memoryview:
    """The upload of a client.

    Raises:
        PayloadError: there is none, or it is longer than its tensors can be.
    """
    if type(index) is not int or not 0 <= index < len(blobs):
        raise PayloadError(f"`blob` is {index!r:.40}, expected the index of one of {len(blobs)} blobs")
    limit = _most_bytes(wire, names)
    if len(blobs[index]) > limit:
        raise PayloadError(
            f"its payload has {len(blobs[index])} bytes, more than the {limit} that its tensors can need"
        )
    return blobs[index]


def _most_bytes(wire: ParamSpec, names: Collection[str]) -> int:
    """Upper limit for the length of a payload with these tensors, whatever its codec."""
    return 4096 + len(wire) + sum(most_bytes(wire.tensors[name].numel) for name in names)
