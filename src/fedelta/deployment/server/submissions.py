"""What was submitted to a server: a folder for each deployment, in `state/deployments/`.

Each file in it has one writer. `record.json` is written by the command that asks for the deployment, then by the
server; `stop` by the command that stops it; `ended.json` and `lock` belong to the process that runs the rounds.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from fedelta.deployment.server.hub import Hub
from fedelta.durable import make_private, write_secret
from fedelta.errors import FedeltaError, InputError

State = Literal["waiting", "running", "finished", "failed", "stopped"]
_RECORD, _STOP, _ENDED, _LOCK = "record.json", "stop", "ended.json", "lock"
OVER: tuple[State, ...] = ("finished", "failed", "stopped")


@dataclass(frozen=True)
class Submission:
    """A deployment as the server records it.

    Args:
        name: of the run directory.
        run: the run directory, absolute.
        asked: when it was submitted, seconds since 1970; they run in this order, one at a time.
        state: what has become of it.
        number: Flower's number of its present run.
        reason: why it failed.
        hint: what to do about it.
        is_input_error: whether the user can correct it.
    """

    name: str
    run: str
    asked: float
    state: State = "waiting"
    number: int | None = None
    reason: str = ""
    hint: str | None = None
    is_input_error: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens."""
        return self.state in OVER


@dataclass(frozen=True)
class Ending:
    """How the process that ran the rounds ended.

    Args:
        number: Flower's number of the run.
        reason: why it failed; empty if it finished.
        hint: what to do about it.
        is_input_error: whether the user can correct it.
    """

    number: int
    reason: str = ""
    hint: str | None = None
    is_input_error: bool = False

    @classmethod
    def of(cls, number: int, error: BaseException) -> Ending:
        """The ending by an error."""
        if isinstance(error, FedeltaError):
            return cls(number, error.message, error.hint, isinstance(error, InputError))
        return cls(number, f"{type(error).__name__}: {error}", "its log in the server's `state/logs/` has more.")

    def of_submission(self, submission: Submission) -> Submission:
        """The record of a deployment that has ended so."""
        state: State = "failed" if self.reason else "finished"
        return replace(submission, state=state, reason=self.reason, hint=self.hint, is_input_error=self.is_input_error)


@dataclass(frozen=True)
class Submissions:
    """All deployments of a server.

    Args:
        hub: its folder.
    """

    hub: Hub

    def all(self) -> Sequence[Submission]:
        """Every deployment, in the order in which they were submitted."""
        paths = self.hub.deployments.glob(f"*/{_RECORD}")
        return sorted((self._read(path) for path in paths), key=lambda submission: (submission.asked, submission.name))

    def get(self, name: str) -> Submission | None:
        """The deployment of this name."""
        path = self._path(name, _RECORD)
        return self._read(path) if path.is_file() else None

    def put(self, submission: Submission) -> None:
        """Records a deployment; its run directory relative to the server's folder if it is in there, as it may move."""
        make_private(self.hub.deployments / submission.name)
        run, folder = Path(submission.run), self.hub.path.resolve()
        record = asdict(submission) | {"run": str(run.relative_to(folder) if run.is_relative_to(folder) else run)}
        write_secret(self._path(submission.name, _RECORD), json.dumps(record, indent=2).encode())

    def submit(self, submission: Submission) -> None:
        """Asks the server to run it, also again."""
        self._path(submission.name, _STOP).unlink(missing_ok=True)
        self._path(submission.name, _ENDED).unlink(missing_ok=True)
        self.put(replace(submission, state="waiting", number=None, reason="", hint=None, is_input_error=False))

    def ask_to_stop(self, name: str) -> None:
        """Asks the server to stop it at once; the rounds that it has finished are kept, and it can be continued."""
        write_secret(self._path(name, _STOP), b"")

    def is_asked_to_stop(self, name: str) -> bool:
        """Whether `ask_to_stop` was called since it was submitted."""
        return self._path(name, _STOP).exists()

    def ending(self, submission: Submission) -> Ending | None:
        """How its present run ended; None if it goes on or died."""
        path = self._path(submission.name, _ENDED)
        if not path.is_file():
            return None
        ending = Ending(**json.loads(path.read_text(encoding="utf-8")))
        return ending if ending.number == submission.number else None

    def end(self, name: str, ending: Ending) -> None:
        """Records how a run ended."""
        write_secret(self._path(name, _ENDED), json.dumps(asdict(ending)).encode())

    @contextmanager
    def running(self, name: str, number: int) -> Iterator[None]:
        """Holds the lock that shows that this process runs a deployment; waits for one that is about to end."""
        with self._path(name, _LOCK).open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            file.truncate()
            file.write(f"{number} {os.getpid()}")
            file.flush()
            yield

    def process(self, submission: Submission) -> int | None:
        """The process of its present run, if it has begun and lives."""
        number, pid, is_held = self._lock(submission.name)
        return pid if is_held and number == submission.number else None

    def has_died(self, submission: Submission) -> bool:
        """Whether its present run had begun and its process is gone."""
        number, _, is_held = self._lock(submission.name)
        return number == submission.number and not is_held

    def _lock(self, name: str) -> tuple[int | None, int | None, bool]:
        """Number and process of who held the lock last, and whether it is held."""
        try:
            file = self._path(name, _LOCK).open()
        except FileNotFoundError:
            return None, None, False
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                is_held = False
            except BlockingIOError:
                is_held = True
            words = file.read().split()
        return (int(words[0]), int(words[1]), is_held) if len(words) == 2 else (None, None, is_held)

    def _read(self, path: Path) -> Submission:
        try:
            submission = Submission(**json.loads(path.read_text(encoding="utf-8")))
            return replace(submission, run=str(self.hub.path.resolve() / submission.run))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"the record {str(path)!r} of a deployment cannot be read: {error}", hint="remove its folder."
            ) from error

    def _path(self, name: str, file: str) -> Path:
        return self.hub.deployments / name / file
