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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedelta.codecs.cast import Cast
from fedelta.codecs.wire import encode
from fedelta.durable import write_atomic
from fedelta.errors import CheckpointError, ConfigError
from fedelta.federation.records import Attendance, Cause, Fault, Reply
from fedelta.params import Params, ParamSpec, select
from fedelta.runtimes.remote.answers import one_line
from fedelta.runtimes.remote.attending import Sheet
from fedelta.runtimes.remote.messages import REFUSED, UNPREPARED, Message
from fedelta.runtimes.remote.post import MisfitError, Miss, Post, Talk
from fedelta.runtimes.remote.profiles import Invitation, describe, expected
from fedelta.runtimes.remote.roster import Roster, refuse_misfits
from fedelta.runtimes.remote.settings import Deployment
from fedelta.runtimes.remote.terms import Terms
from fedelta.runtimes.remote.versions import NO_VERSIONS, Copying, Versions
from fedelta.runtimes.remote.waiting import Watch, silent, wait_for
from fedelta.runtimes.remote.work import ClientAnswer, Part, client_answers, usable, work
from fedelta.strategies.base import RoundPlan

_COPIES = "copies"
_CAUSES: Mapping[str, Cause] = {
    "late": "too late",
    "busy": "busy",
    "away": "away",
    "refused": "site refused",
    "failed": "site failed",
}


class Remote:
    """A `Runtime` that runs clients at sites.

    Args:
        post: exchanges messages.
        settings: how long to wait.
        roster: the sites and their clients.
        invitation: what sites are told first; again when they come back.
        terms: what server and sites must agree on.
        wire: every tensor that can travel, as `Federation.wire`.
        copying: how to work out what clients remember for the strategy; None if they remember nothing.
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
        copying: Copying | None = None,
        watch: Watch = silent,
    ) -> None:
        self._post, self._book, self._settings, self._roster = post, post.book, settings, roster
        self._invitation, self._terms, self._wire, self._watch = invitation, terms, wire, watch
        self._versions = Versions(copying)
        self._sheet = Sheet(post, roster)
        self._is_short = False  # whether a round has waited in vain for more sites
        self._round = 0

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
        self._versions.begin(plan)
        self._wait()
        clients: dict[str, list[int]] = {}
        for client_id in sorted(payloads):
            clients.setdefault(self._roster.site_of[client_id], []).append(client_id)
        for site, client_ids in clients.items():
            self._sheet.asked(site, client_ids)
        talks = {
            site: partial(self._training, site, Part(plan, payloads, client_ids))
            for site, client_ids in sorted(clients.items())
        }
        for site, result in self._post.exchange(talks):
            if isinstance(result, Miss):
                self._book.note(site, result.state, plan.round, result.reason)
                fault = Fault(f"site {site!r}: {result.reason}", _CAUSES[result.state], reached="train" in result.sent)
                yield from (Reply(client_id, 0, b"", fault=fault) for client_id in clients[site])
            else:
                self._book.note(site, "took part", plan.round)
                yield from map(self._reply, result)

    def accept(self, client_ids: Iterable[int]) -> None:
        """See `Runtime.accept`."""
        accepted = list(client_ids)
        self._versions.accept(accepted)
        self._sheet.accepted(accepted)

    def attendance(self) -> list[Attendance]:
        """What each site did since the last call, by name."""
        self._post.look()
        return self._sheet.finished(self._round)

    def measure(self, params: Params, *, with_answers: bool = False) -> dict[str, Mapping[str, Any]]:
        """What each connected site measures of server params on its own test rows: the answers' manifests, by site.

        Args:
            params: of the server; the sites add the tensors that their clients keep.
            with_answers: whether a language model answers prompts, too.
        """
        names = [name for name in (*self._wire.shared, *self._wire.received) if name in params]
        payload, _ = encode(select(params, names), self._wire, Cast())
        sites = [site for site, profile in self._roster.profiles.items() if profile.num_test_examples]
        talks = {site: partial(self._measuring, site, payload, with_answers=with_answers) for site in sites}
        return {site: result for site, result in self._post.exchange(talks) if not isinstance(result, Miss)}

    def finish(self) -> None:
        """Tells the connected sites that the run has ended, so that they forget what its clients keep."""
        present = [site for site in self._book.available if site in self._roster.profiles]
        for _ in self._post.exchange(dict.fromkeys(present, self._parting), self._settings.min_grace_seconds):
            pass

    def snapshot(self, folder: Path, round: int) -> str:
        """See `Runtime.snapshot`: writes which versions the clients have, and what is known about the sites."""
        record = {
            **self._versions.snapshot(folder / _COPIES, round),
            "round": round,
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
        if not mark:
            self._versions.restore(folder / _COPIES, NO_VERSIONS)
            return
        path = _path(folder, mark)
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise _unreadable(path, str(error)) from error
        if _mark(content) != mark:
            raise _unreadable(path, "its content does not match its name")
        record = json.loads(content)
        self._versions.restore(folder / _COPIES, record)
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

    def _training(self, site: str, part: Part) -> Talk[list[ClientAnswer]]:
        """The talk of a round: prepares the site if need be, and lets it train these clients."""
        message = work(self._invitation.run, part, self._versions, self._wire)
        answer = yield from self._asking(site, message)
        return client_answers(part, self._wire, answer)

    def _reply(self, said: ClientAnswer) -> Reply:
        """The reply of a client; notes its version."""
        reply = replace(said.reply, payload=bytes(said.payload))
        if reply.fault is None:
            self._versions.answer(reply.client_id, said.version, reply.payload)
            self._sheet.claimed(reply.client_id, reply.num_examples)
        elif reply.fault.cause == "forgot" and not self._versions.forget(reply.client_id):
            # It was expected to keep nothing, so there is nothing that it can have forgotten.
            return replace(reply, fault=replace(reply.fault, cause="site failed"))
        return reply

    def _measuring(self, site: str, payload: bytes, *, with_answers: bool) -> Talk[Mapping[str, Any]]:
        """The talk that asks a site for its measures."""
        ids = sorted(self._roster.numbers[site].values())
        clients = [{"id": client_id, "version": self._versions.of(client_id)} for client_id in ids]
        manifest = {"run": self._invitation.run, "round": self._round, "clients": clients, "with_answers": with_answers}
        answer = yield from self._asking(site, Message("evaluate", manifest, (payload,)))
        return usable(answer, "evaluated")

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


def _mark(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _path(folder: Path, mark: str) -> Path:
    return folder / f"sites-{mark}.json"


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{str(path)!r}, which says what the sites keep, cannot be read: {reason}.",
        hint="it was deleted or damaged; restore it from a backup, or start the run again.",
    )
