"""A site's part in a round: its clients train, and it measures a model on its test rows.

The answers depend on the message and on what clients remember, on nothing else: a message that comes again, perhaps to
another process, has the same answer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedelta.assembly.deployed import Deployed
from fedelta.codecs.cast import Cast
from fedelta.codecs.wire import decode
from fedelta.deployment.site.protection import Protection
from fedelta.deployment.site.requests import ClientVersion, Evaluate, Train, Trainee, indexed
from fedelta.errors import PayloadError, RoundError
from fedelta.federation.client import Site
from fedelta.federation.memory import Memories, Memory
from fedelta.federation.records import Reply
from fedelta.params import select
from fedelta.runtimes.remote.messages import FAILED, Message
from fedelta.runtimes.remote.store import NOTHING, MemoryStore
from fedelta.strategies.base import RoundPlan

logger = logging.getLogger("fedelta")
Blobs = Sequence[bytes | memoryview]
_SPENT = {"reason": "the site releases no more about this client: its own limit would be exceeded", "cause": "refused"}
_CHANGED = {
    "reason": "the site has answered this message before, and would answer otherwise now: its data or its machine have "
    "changed",
    "cause": "refused",
}
_FORGOT = {"reason": "the site no longer has what the client remembers", "cause": "forgot"}


def trained(
    deployed: Deployed, protection: Protection | None, store: MemoryStore, request: Train, blobs: Blobs
) -> Message:
    """The answer to `train`: an upload or a fault of each client.

    Raises:
        PayloadError: the message names clients, tensors or blobs that are not there.
        InputError: the site cannot count what it releases.
    """
    _check(deployed, request, blobs)
    downloads = [bytes(blob) for blob in blobs]
    memories: dict[int, Memory] = {}
    answers = _Answers(deployed, request.round)
    for client in request.clients:
        memory = _memory(deployed, store, client, downloads)
        if memory is None:
            answers.add_fault(client.id, _FORGOT)
            continue
        store.expect(client.id, client.version, request.round)
        memories[client.id] = memory if client.keeps_adrift else replace(memory, adrift={})
    site = replace(deployed.site, memories=Memories(memories))
    admitted = set(memories)
    if protection is not None:
        privacy, admitted = protection.admit(site, request, downloads, memories)
        site = replace(site, privacy=privacy)
    for client_id in sorted(memories.keys() - admitted):
        answers.add_fault(client_id, _SPENT)
    able = [client for client in request.clients if client.id in admitted]
    plan = RoundPlan(
        request.round,
        download={client.id: () for client in able},  # the payload itself says what it holds
        upload={client.id: tuple(request.uploads[client.upload]) for client in able},
        num_clients=request.num_clients,
    )
    logger.info("round %d: %d of the site's clients train", request.round, len(able))
    replies = site.run(plan, {client.id: downloads[client.download] for client in able})
    if protection is not None:
        replies = _only_confirmed(protection, request.run, site, replies, answers)
    for reply in replies:
        answers.add(reply, site.memories.staged(reply.client_id), store)
    logger.info("round %d: %d uploads", request.round, len(answers.blobs))
    return Message("trained", {"round": request.round, "clients": answers.clients}, answers.blobs)


def _only_confirmed(
    protection: Protection, run: str, site: Site, replies: Iterable[Reply], answers: _Answers
) -> Iterator[Reply]:
    """Those of `replies` that may be sent; the others become faults in `answers`."""
    if site.privacy is None:
        raise ValueError("a protected site has no privacy")
    all_replies = list(replies)
    confirmed = protection.confirmed(run, site.privacy, all_replies)
    for reply in all_replies:
        if reply.client_id in confirmed:
            yield reply
        else:
            logger.warning("client %d: its answer is another one than before, and is not sent", reply.client_id)
            answers.add_fault(reply.client_id, _CHANGED)


@dataclass(frozen=True)
class _Answers:
    """The answers of a site's clients in a round.

    Args:
        deployed: the site.
        round: number of the round.
        clients: one entry for each client that has answered.
        blobs: their uploads.
    """

    deployed: Deployed
    round: int
    clients: list[dict[str, Any]] = field(default_factory=list)
    blobs: list[bytes] = field(default_factory=list)

    def add(self, reply: Reply, memory: Memory | None, store: MemoryStore) -> None:
        """Adds a reply, once what the client remembers is on the disk."""
        if reply.fault is not None:
            self.add_fault(reply.client_id, {"reason": reply.fault.reason, "cause": reply.fault.cause})
            return
        loss = reply.metrics.get("train_loss")  # none leaves a client whose updates are private
        if loss is not None and not math.isfinite(loss):  # JSON has no such number
            self.add_fault(reply.client_id, {"reason": f"the client's training loss is {loss}", "cause": "refused"})
            return
        try:
            version = NOTHING if memory is None else store.write(reply.client_id, self.round, memory)
        except OSError as error:
            logger.warning("what client %d remembers cannot be written", reply.client_id, exc_info=error)
            reason = f"the site cannot write what the client remembers: {error.strerror or type(error).__name__}"
            self.add_fault(reply.client_id, {"reason": reason, "cause": FAILED})
            return
        entry = self._entry(reply.client_id) | {"train_loss": loss, "blob": len(self.blobs), "version": version}
        self.clients.append(entry)
        self.blobs.append(reply.payload)

    def add_fault(self, client_id: int, fault: dict[str, str]) -> None:
        """Adds that a client has no upload, and why."""
        self.clients.append(self._entry(client_id) | {"fault": fault})

    def _entry(self, client_id: int) -> dict[str, Any]:
        num_examples = len(self.deployed.site.partition[client_id])
        nothing = {"train_loss": None, "blob": None, "version": NOTHING, "fault": None}
        return {"id": client_id, "num_examples": num_examples, **nothing}


def evaluated(deployed: Deployed, store: MemoryStore, request: Evaluate, blobs: Blobs) -> Message:
    """The answer to `evaluate`: sums over the site's test rows, at each exit.

    Raises:
        PayloadError: the blob does not hold all shared tensors, or the message names clients that are not there.
        RoundError: a sum is not finite.
    """
    site = deployed.site
    params, _ = decode(bytes(indexed(blobs, 0, "blob")), site.wire, Cast())
    spec = site.engine.spec
    wanted = [name for name in spec if name in spec.shared or name in spec.received]
    if lacking := [name for name in wanted if name not in params]:
        raise PayloadError(f"a model to be measured lacks {len(lacking)} tensors, first `{lacking[0]}`.")
    params = site.given | select(params, wanted)
    memories: dict[int, Memory] = {}
    if spec.kept:
        for client in request.clients:
            _check_client(deployed, client)
            memory = store.read(client.id, client.version) if client.version != NOTHING else None
            memories |= {} if memory is None else {client.id: memory}
    sums, num_examples = deployed.sums(params, memories, with_answers=request.with_answers)
    for at_exit in sums:
        if broken := [name for name, total in at_exit.totals.items() if not all(map(math.isfinite, total))]:
            raise RoundError(f"the model's `{broken[0]}` is not a finite number on this site's test rows.")
    totals = [{name: list(total) for name, total in at_exit.totals.items()} for at_exit in sums]
    return Message("evaluated", {"sums": totals, "num_examples": num_examples})


def _memory(deployed: Deployed, store: MemoryStore, client: Trainee, blobs: Sequence[bytes]) -> Memory | None:
    """The memory that a client must have; None if it is lost.

    Raises:
        PayloadError: what the client remembered for the strategy, as the server has it, cannot be decoded.
        SpecError: it holds other tensors.
    """
    blank, wire = deployed.site.blank, deployed.site.wire
    if client.version != NOTHING:
        return store.read(client.id, client.version)
    if client.remembered is None:
        return blank
    remembered, _ = decode(blobs[client.remembered], wire, Cast())
    wire.check(remembered, blank.remembered)
    return replace(blank, remembered=select(remembered, blank.remembered))


def _check(deployed: Deployed, request: Train, blobs: Blobs) -> None:
    """Raises unless the message fits the site and its own parts."""
    wire = deployed.site.wire
    for names in request.uploads:
        if foreign := [name for name in names if name not in wire or not wire.tensors[name].shared]:
            raise PayloadError(f"a message asks for the tensor {foreign[0]!r}, which the site has not or keeps.")
        if len(set(names)) < len(names):
            raise PayloadError("a message asks for a tensor twice.")
    for client in request.clients:
        _check_client(deployed, client)
        indexed(blobs, client.download, "blob")
        indexed(request.uploads, client.upload, "upload")
        indexed(blobs, client.remembered or 0, "blob")
        if client.version >= request.round:
            raise PayloadError(
                f"a message of round {request.round} expects a memory from round {client.version}, which is later."
            )


def _check_client(deployed: Deployed, client: ClientVersion | Trainee) -> None:
    if client.id not in deployed.site.partition:
        raise PayloadError(f"client {client.id} is not one of this site's {len(deployed.site.partition)} clients.")
