"""A runtime whose clients are at sites: one message to each site in a round, with all its clients of the cohort.

What a client keeps between rounds is on its site's disk, in *versions*: a version is the round whose accepted reply
wrote it. The server says in each message which version it expects of each client, 0 for none. So a site that lost its
disk is noticed (its clients "forgot", and get everything that they hold), and a server that goes on from an older
checkpoint finds the version of that checkpoint. Sites give the same answer to the same message.

A client that leaves the cohort drops what it has adrift, as in a simulation (`Memories.begin`). Its site is not told so
at once, but with the next message to that client: `keeps_adrift`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedelta.codecs.cast import Cast
from fedelta.codecs.wire import encode
from fedelta.durable import write_atomic
from fedelta.errors import CheckpointError, ConfigError, PayloadError
from fedelta.federation.records import Attendance, Cause, Fault, Reply
from fedelta.params import Params, ParamSpec, select
from fedelta.runtimes.remote.answers import one_line, whole
from fedelta.runtimes.remote.messages import FAILED, REFUSED, UNPREPARED, Message
from fedelta.runtimes.remote.post import MisfitError, Miss, Post, Talk, Traffic
from fedelta.runtimes.remote.roster import (
    Invitation,
    Roster,
    Watch,
    describe,
    expected,
    reason_of,
    refuse_misfits,
    silent,
    wait_for,
)
from fedelta.runtimes.remote.settings import Deployment
from fedelta.runtimes.remote.terms import Terms
from fedelta.strategies.base import RoundPlan

# What a site may say about a client; everything else counts as a refused reply.
_SITE_CAUSES: Mapping[object, Cause] = {"forgot": "forgot", FAILED: "site failed"}
_CAUSES: Mapping[str, Cause] = {
    "late": "too late",
    "busy": "busy",
    "away": "away",
    "refused": "site refused",
    "failed": "site failed",
}


@dataclass
class _Page:
    """What a round has brought so far, until it is asked for.

    Args:
        asked: site to its clients that were asked.
        claimed: client to the number of examples in its reply.
        accepted: clients in the mean.
        noted: sites whose part in the round is in the book.
    """

    asked: dict[str, set[int]]
    claimed: dict[int, int]
    accepted: set[int]
    noted: set[str]


class Remote:
    """A `Runtime` that runs clients at sites.

    Args:
        post: exchanges messages.
        settings: how long to wait.
        roster: the sites and their clients.
        invitation: what sites are told first; again when they come back.
        terms: what server and sites must agree on.
        wire: every tensor that can travel, as `Federation.wire`.
        watch: called while a round waits for sites.
    """

    def __init__(
        self,
        post: Post,
        settings: Deployment,
        roster: Roster,
        *,
        invitation: Invitation,
        terms: Terms,
        wire: ParamSpec,
        watch: Watch = silent,
    ) -> None:
        self._post, self._book, self._settings, self._roster = post, post.book, settings, roster
        self._invitation, self._terms, self._wire, self._watch = invitation, terms, wire, watch
        self._versions: dict[int, int] = {}  # of the clients that keep something
        self._answered: dict[int, int] = {}  # client to the version that it has if its reply is accepted
        self._unbroken: set[int] = set()  # accepted, and in every cohort since
        self._is_short = False  # whether a round has waited in vain for more sites
        self._round = 0
        self._page = _Page({}, {}, set(), set())

    def prepare(self) -> None:
        """Prepares all sites for the run; for its beginning. Later each site is prepared when it comes back.

        Raises:
            ConfigError: a site does not fit the run, or too few are ready.
        """
        talks = {site: partial(self._greeting, site) for site in self._roster.profiles}
        misses = {site: result for site, result in self._post.exchange(talks) if isinstance(result, Miss)}
        refuse_misfits({site: miss.reason for site, miss in misses.items() if miss.state == "refused"})
        num_ready = len(talks) - len(misses)
        if num_ready < self._settings.min_sites:
            problems = [f"site {site!r}: {miss.reason}" for site, miss in sorted(misses.items())]
            raise ConfigError(
                [f"{num_ready} sites are ready, `deployment.min_sites` is {self._settings.min_sites}", *problems],
                origin="the sites",
                hint="look into the log of each site.",
            )

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
        """See `Runtime.run`; a client whose site gives no answer has a reply with a fault."""
        self._round = plan.round
        self._unbroken.intersection_update(plan.cohort)
        self._wait()
        clients: dict[str, list[int]] = {}
        for client_id in sorted(payloads):
            clients.setdefault(self._roster.site_of[client_id], []).append(client_id)
        for site, client_ids in clients.items():
            self._page.asked.setdefault(site, set()).update(client_ids)
        talks = {site: partial(self._training, site, plan, payloads, ids) for site, ids in sorted(clients.items())}
        for site, result in self._post.exchange(talks):
            self._page.noted.add(site)
            if isinstance(result, Miss):
                self._book.note(site, result.state, plan.round, result.reason)
                fault = Fault(f"site {site!r}: {result.reason}", _CAUSES[result.state], reached="train" in result.sent)
                yield from (Reply(client_id, 0, b"", fault=fault) for client_id in clients[site])
            else:
                self._book.note(site, "took part", plan.round)
                yield from result

    def accept(self, client_ids: Iterable[int]) -> None:
        """See `Runtime.accept`."""
        for client_id in client_ids:
            version = self._answered.get(client_id, 0)
            self._versions.pop(client_id, None)
            if version:
                self._versions[client_id] = version
            self._unbroken.add(client_id)
            self._page.accepted.add(client_id)
        self._answered.clear()

    def attendance(self) -> list[Attendance]:
        """What each site did since the last call, by name."""
        self._post.look()
        for site in self._book.names:
            if site not in self._page.noted:
                self._note_idle(site)
        attendances = [self._attendance_of(site) for site in self._book.names]
        self._page = _Page({}, {}, set(), set())
        self._post.traffic.clear()
        return attendances

    def measure(self, params: Params) -> dict[str, Mapping[str, Any]]:
        """What each connected site measures of server params on its own test rows: the answers' manifests, by site.

        Args:
            params: of the server; the sites add the tensors that their clients keep.
        """
        names = [name for name in self._wire.shared if name in params]
        payload, _ = encode(select(params, names), self._wire, Cast())
        sites = [site for site, profile in self._roster.profiles.items() if profile.num_test_examples]
        talks = {site: partial(self._measuring, site, payload) for site in sites}
        return {site: result for site, result in self._post.exchange(talks) if not isinstance(result, Miss)}

    def finish(self) -> None:
        """Tells the connected sites that the run has ended, so that they forget what its clients keep."""
        present = [site for site in self._book.available if site in self._roster.profiles]
        for _ in self._post.exchange(dict.fromkeys(present, self._parting)):
            pass

    def snapshot(self, folder: Path, round: int) -> str:
        """See `Runtime.snapshot`: writes which versions the clients have, and what is known about the sites."""
        record = {
            "round": round,
            "versions": sorted(self._versions.items()),
            "unbroken": sorted(self._unbroken),
            "sites": self._book.as_record(self._roster.profiles),
        }
        content = json.dumps(record)
        mark = _mark(content)
        folder.mkdir(parents=True, exist_ok=True)
        written = set(folder.glob("sites-*.json"))
        write_atomic(_path(folder, mark), content)
        # The previous one is kept: the run may be killed before the checkpoint that refers to this one is written.
        for path in sorted(written, key=lambda path: path.stat().st_mtime_ns)[:-1]:
            path.unlink(missing_ok=True)
        return mark

    def restore(self, folder: Path, mark: str) -> None:
        """See `Runtime.restore`."""
        self._versions, self._unbroken = {}, set()
        self._answered.clear()
        if not mark:
            return
        path = _path(folder, mark)
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise _unreadable(path, str(error)) from error
        if _mark(content) != mark:
            raise _unreadable(path, "its content does not match its name")
        record = json.loads(content)
        self._versions = dict(map(tuple, record["versions"]))
        self._unbroken = set(record["unbroken"])
        self._round = record["round"]
        self._book.restore(record["sites"])

    def _wait(self) -> None:
        """Waits for sites if fewer than `min_sites` are connected; in vain only once, unless there is none at all."""
        sites, settings = self._roster.profiles, self._settings
        self._post.look(again=True)
        present = [site for site in self._book.available if site in sites]
        if len(present) < settings.min_sites and not (present and self._is_short):
            present = wait_for(self._post, settings.wait_seconds, settings.min_sites, self._watch, among=sites)
        self._is_short = len(present) < settings.min_sites

    def _greeting(self, site: str) -> Talk[str]:
        """The talk that prepares a site; asks it first what it has if it has not said so in this session."""
        if not self._book.of(site).is_described:
            profile = yield from describe(self._invitation)
            if profile.num_examples.keys() != self._roster.profiles[site].num_examples.keys():
                raise MisfitError("its clients are no longer those with which the run began")
            self._book.described(site)
        answer = yield self._terms.message(self._roster, site)
        manifest = expected(answer, "prepared")
        if problems := self._terms.problems(manifest):
            raise MisfitError("; ".join(problems))
        self._book.ready(site)
        return one_line(manifest, "device")

    def _training(
        self, site: str, plan: RoundPlan, payloads: Mapping[int, bytes], client_ids: Sequence[int]
    ) -> Talk[list[Reply]]:
        """The talk of a round: prepares the site if need be, and lets it train these clients."""
        message = self._work(plan, payloads, client_ids)
        answer = yield from self._asking(site, message)
        return self._replies(plan, client_ids, answer)

    def _measuring(self, site: str, payload: bytes) -> Talk[Mapping[str, Any]]:
        """The talk that asks a site for its measures."""
        ids = sorted(self._roster.numbers[site].values())
        clients = [{"id": client_id, "version": self._versions.get(client_id, 0)} for client_id in ids]
        manifest = {"run": self._invitation.run, "round": self._round, "clients": clients}
        answer = yield from self._asking(site, Message("evaluate", manifest, (payload,)))
        return _usable(answer, "evaluated")

    def _parting(self) -> Talk[bool]:
        yield Message("finish", {"run": self._invitation.run})
        return True

    def _asking(self, site: str, message: Message) -> Talk[Message]:
        """Asks a site that is prepared, or prepares it before."""
        if not self._book.of(site).is_ready:
            yield from self._greeting(site)
        answer = yield message
        if answer.kind == REFUSED and answer.manifest.get("cause") == UNPREPARED:
            self._book.unready(site)
            yield from self._greeting(site)
            answer = yield message
        return answer

    def _work(self, plan: RoundPlan, payloads: Mapping[int, bytes], client_ids: Sequence[int]) -> Message:
        """The message with the work of a site: each distinct download and each list of names once."""
        downloads: dict[bytes, int] = {}
        uploads: dict[tuple[str, ...], int] = {}
        clients = [
            {
                "id": client_id,
                "download": downloads.setdefault(payloads[client_id], len(downloads)),
                "upload": uploads.setdefault(tuple(plan.upload[client_id]), len(uploads)),
                "version": self._versions.get(client_id, 0),
                "keeps_adrift": client_id in self._unbroken,
            }
            for client_id in client_ids
        ]
        manifest = {
            "run": self._invitation.run,
            "round": plan.round,
            "num_clients": plan.num_clients,
            "uploads": [list(names) for names in uploads],
            "clients": clients,
        }
        return Message("train", manifest, tuple(downloads))

    def _replies(self, plan: RoundPlan, client_ids: Collection[int], answer: Message) -> list[Reply]:
        """The replies of a site's clients.

        Raises:
            PayloadError: the answer as a whole cannot be used, for example because it holds a client of another site.
        """
        manifest = _usable(answer, "trained")
        entries = manifest.get("clients")
        if manifest.get("round") != plan.round:
            raise PayloadError(f"it answers for round {manifest.get('round')!r:.40}, expected {plan.round}")
        if not isinstance(entries, list) or len(entries) > len(client_ids):
            raise PayloadError(f"it answers with no list of at most {len(client_ids)} clients")
        replies = [self._reply(plan, client_ids, entry, answer.blobs) for entry in entries]
        missing = sorted(set(client_ids).difference(reply.client_id for reply in replies))
        fault = Fault("its site has answered without this client", "site failed")
        return [*replies, *(Reply(client_id, 0, b"", fault=fault) for client_id in missing)]

    def _reply(
        self, plan: RoundPlan, client_ids: Collection[int], entry: object, blobs: Sequence[bytes | memoryview]
    ) -> Reply:
        """The reply of one client; with a fault if its values cannot be used."""
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or entry["id"] not in client_ids:
            raise PayloadError(f"it answers for {entry!r:.60}, which is none of the clients that it was asked for")
        client_id: int = entry["id"]
        try:
            if entry.get("fault") is not None:
                return Reply(client_id, 0, b"", fault=self._fault(client_id, entry["fault"]))
            payload = self._payload(plan.upload[client_id], entry.get("blob"), blobs)
            version = entry.get("version")
            if type(version) is not int or version not in (0, plan.round):
                raise PayloadError(f"`version` is {version!r:.40}, expected 0 or {plan.round}")
        except PayloadError as error:
            return Reply(client_id, 0, b"", fault=Fault(error.message, "site failed"))
        num_examples, loss = entry.get("num_examples"), entry.get("train_loss")
        if type(num_examples) is int:
            self._page.claimed[client_id] = num_examples
        self._answered[client_id] = version
        # The round loop checks the types of both.
        return Reply(client_id, num_examples, payload, {"train_loss": loss})  # type: ignore[arg-type, dict-item]

    def _fault(self, client_id: int, fault: object) -> Fault:
        """Why a client has no reply, as its site says."""
        values = fault if isinstance(fault, dict) else {}
        cause = _SITE_CAUSES.get(values.get("cause") if isinstance(values.get("cause"), str) else None, "refused")
        reason = one_line(values, "reason") or "its site gives no reason"
        if cause == "forgot" and self._versions.pop(client_id, None) is None:
            cause = "site failed"  # it says so of a client that nothing was expected of
        return Fault(reason, cause)

    def _payload(self, names: Sequence[str], index: object, blobs: Sequence[bytes | memoryview]) -> bytes:
        """The upload of a client.

        Raises:
            PayloadError: there is none, or it is longer than its tensors can be.
        """
        blob = blobs[whole(index, "blob", least=0)] if type(index) is int and index < len(blobs) else None
        if blob is None:
            raise PayloadError(f"`blob` is {index!r:.40}, expected the index of one of {len(blobs)} blobs")
        limit = _most_bytes(self._wire, names)
        if len(blob) > limit:
            raise PayloadError(f"its payload has {len(blob)} bytes, more than the {limit} that its tensors can need")
        return bytes(blob)

    def _note_idle(self, site: str) -> None:
        """Enters the state of a site that was asked for nothing in this round."""
        entry = self._book.of(site)
        if not entry.presence.is_online:
            self._book.note(site, "away", self._round, "it is not connected")
        elif site not in self._roster.profiles:
            reason = "it was not there when the run began; it takes part from the next run on"
            self._book.note(site, "refused", self._round, reason)
        elif entry.is_refused:
            self._book.note(site, "refused", self._round, entry.reason)
        elif entry.debt is not None:
            self._book.note(site, "busy", self._round, "it is at work for an earlier round")
        else:
            self._book.note(site, "not asked", self._round)

    def _attendance_of(self, site: str) -> Attendance:
        entry, page = self._book.of(site), self._page
        traffic = self._post.traffic.get(site, Traffic())
        asked = page.asked.get(site, set())
        accepted = asked & page.accepted
        return Attendance(
            site,
            entry.state,
            entry.since,
            entry.since_round,
            entry.reason,
            num_asked=len(asked),
            num_accepted=len(accepted),
            num_examples=sum(page.claimed.get(client_id, 0) for client_id in accepted),
            downlink_bytes=traffic.downlink_bytes,
            uplink_bytes=traffic.uplink_bytes,
            seconds=traffic.seconds,
        )


def _usable(answer: Message, kind: str) -> Mapping[str, Any]:
    """The manifest of an answer to work; a site that refuses work has failed, which need not be so in the next round.

    Raises:
        PayloadError: it refuses, or the answer is of another kind.
    """
    if answer.kind == REFUSED:
        raise PayloadError(reason_of(answer))
    return expected(answer, kind)


def _most_bytes(wire: ParamSpec, names: Sequence[str]) -> int:
    """Upper limit for the length of a payload with these tensors, whatever its codec.

    A scalar takes 4 bytes as float32, and as much again for what a codec adds, such as the places of sparse values.
    """
    return 4096 + len(wire) + sum(8 * wire.tensors[name].numel + 64 for name in names)


def _mark(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _path(folder: Path, mark: str) -> Path:
    return folder / f"sites-{mark}.json"


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{str(path)!r}, which says what the sites keep, cannot be read: {reason}.",
        hint="it was deleted or damaged; restore it from a backup, or start the run again.",
    )
