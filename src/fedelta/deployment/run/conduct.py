"""The server's part of a deployed experiment: from a configuration in a run directory to a finished run.

`conduct` can be killed at any time and called again: it goes on after the last complete round, with the same bits.
Until the first files are complete (the checkpoint is written last), it begins anew. What the run is doing is in its
`status.json`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fedelta.assembly.server_model import read_test
from fedelta.assembly.settling import adopting
from fedelta.config import WITHOUT_ADAPTER, Config, load_config
from fedelta.data.files import AT_THE_SITES
from fedelta.deployment.run.announcing import Announced, Announcer
from fedelta.deployment.run.conflicts import refuse_conflicts
from fedelta.deployment.run.parts import Basis, ServerParts, build_parts, needs_key, sent_to_sites
from fedelta.durable import write_atomic
from fedelta.errors import FedeltaError, LinkError
from fedelta.federation.records import RoundOutcome
from fedelta.privacy.randomness import new_key
from fedelta.record.checkpoint import load
from fedelta.record.files import read_json
from fedelta.record.keys import read_key
from fedelta.record.ledger import Ledger
from fedelta.record.origin import changed_files, refuse
from fedelta.record.privacy import STOPPED
from fedelta.record.rundir import CHECKPOINT, PARTITION, RunDirectory
from fedelta.record.sites import TOO_FEW, too_few_sites
from fedelta.record.status import Status
from fedelta.report.writing import write_report
from fedelta.running import begun, go_on
from fedelta.runtimes.remote.clock import Clock
from fedelta.runtimes.remote.link import Link
from fedelta.runtimes.remote.post import Post
from fedelta.runtimes.remote.profiles import Invitation
from fedelta.runtimes.remote.roster import Roster, gather
from fedelta.runtimes.remote.runtime import Remote
from fedelta.tracking.table import require

RUN_ID = "run.id"
REPORT = "report.html"


def conduct(directory: Path, link: Link, *, clock: Clock = Clock()) -> None:  # noqa: B008 a frozen value
    """Runs the experiment whose `config.toml` is in `directory`, over the sites that `link` reaches.

    Args:
        directory: of the run; holds its configuration, and of an earlier call all that this has done.
        link: carries messages.
        clock: for deadlines and dates.

    Raises:
        InputError: the configuration cannot be deployed, too few sites came, or a site does not fit the run.
        RoundError: training failed; earlier rounds are kept.
        LinkError: the engine could not be reached for too long.
    """
    run, announcer = RunDirectory(directory), Announcer(directory, clock)
    with run.locked():
        try:
            text = _Conductor(run, link, clock, announcer).conduct()
        except Exception as error:
            reason, hint = (error.message, error.hint) if isinstance(error, FedeltaError) else (repr(error), None)
            announcer.say(Status("failed", reason, hint or ""))
            raise
        announcer.say(Status("finished", text))


@dataclass(frozen=True)
class _Conductor:
    """The steps of `conduct`.

    Args:
        run: the directory.
        link: carries messages.
        clock: for deadlines and dates.
        announcer: says what the run is doing.
    """

    run: RunDirectory
    link: Link
    clock: Clock
    announcer: Announcer

    def conduct(self) -> str:
        """Runs the experiment; returns what is to be said about it when it is finished."""
        has_begun = (self.run.path / CHECKPOINT).is_file()
        config = adopting(load_config(self.run.config, WITHOUT_ADAPTER if has_begun else ()))
        refuse_conflicts(config)
        require(config.tracking)
        parts, remote = self._parts(config, self._roster() if has_begun else None)
        if not has_begun:
            remote.prepare()
            self.run.complete(begun(parts))
        self.announcer.say(Status("running", too_few_sites(self.run.rounds.read(), config.deployment.min_sites)))
        finished = go_on(RunDirectory.open(self.run.path), parts, self._on_round(config))
        write_report([self.run.path], self.run.path / REPORT)
        with suppress(LinkError):  # sites delete what is not used any more after some time
            remote.finish()
        return " ".join(str(finished.summary[key]) for key in (STOPPED, TOO_FEW) if key in finished.summary)

    def _parts(self, config: Config, roster: Roster | None) -> tuple[ServerParts, Remote]:
        """The objects of the run; waits for sites if there is no roster yet."""
        by_server, raw = config.deployment.evaluate == "server", None
        key = None
        if needs_key(config):
            key = new_key() if roster is None else read_key(self.run.path)
        if by_server and config.data.source != AT_THE_SITES:
            raw = read_test(config)  # what can be refused without sites is refused before they are waited for
        invitation = Invitation(self._run_id(), sent_to_sites(config).to_toml(), version("fedelta"))
        post = Post(Announced(self.link, self.announcer), config.deployment, self.clock)
        if roster is None:
            roster = gather(post, config.deployment, invitation, self.announcer.waits)
        if by_server and raw is None:
            raw = read_test(config, roster.class_names)
        return build_parts(Basis(config, roster, raw, key), post, invitation, self.announcer.waits)

    def _roster(self) -> Roster:
        """The sites and clients with which the run began.

        Raises:
            CheckpointError: the file that says so, or another one that never changes, was changed.
        """
        changed = changed_files(self.run.path, load(self.run.checkpoint).origin)
        refuse(f"run {str(self.run.path)!r}", changed)
        return Roster.from_record(read_json(self.run.path / PARTITION)["sites"])

    def _run_id(self) -> str:
        """What tells the sites this run from every other one, also from an earlier one of the same name."""
        path = self.run.path / RUN_ID
        if not path.exists():
            write_atomic(path, secrets.token_hex(8))
        return path.read_text(encoding="utf-8")

    def _on_round(self, config: Config) -> Callable[[RoundOutcome, Ledger], None]:
        def say(outcome: RoundOutcome, _: Ledger) -> None:
            self.announcer.after_round(outcome, too_few_sites(self.run.rounds.read(), config.deployment.min_sites))

        return say
