"""Which of several `fedelta compare` on one directory runs which cell.

In the folder `claims` each of these jobs has a file that it locks and touches, and each cell that a job runs has one
with the name of that job. Jobs may be on other machines, and may be killed at any time. What is assumed of the file
system: only one of several processes that create a file with O_EXCL succeeds (NFS since version 3, Lustre, GPFS,
BeeGFS), and `flock` works between the processes of one machine. Clocks of machines are not compared: all times are
those that the file system gives to touched files.

A job is dead when its file is gone, or when it is on this machine and its lock is free, or when it is on another one
and has not touched its file for `SILENT_SECONDS`. The claim of a dead job stays, and whoever goes on with its cell
creates the claim with the next number, so that two that see the same dead job cannot both have the cell.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from fedelta.comparison.directory import CellRun
from fedelta.errors import RunError
from fedelta.machine import machine_id
from fedelta.record.files import exclusive, is_locked

BEAT_SECONDS = 20.0
SILENT_SECONDS = 300.0  # several times what an NFS client caches the times of a file (60 s by default)
_CLAIM = re.compile(r"(?P<cell>.+)\.(?P<number>\d+)\.claim")
_JOB = "*.job"


class _Record(TypedDict):
    """What the file of a job says."""

    machine: str
    request: str  # the digest of what it compares
    since_ns: int


@dataclass
class Claims:
    """The claims of this job; made by `joined`.

    Args:
        folder: with the files of jobs and claims.
        job: the name of this job's file.
        since_ns: when the first of the jobs began that have been at work without a pause; a cell that failed after
            that is not tried again.
    """

    folder: Path
    job: str
    since_ns: int
    _held: set[str] = field(default_factory=set, init=False)

    def others(self) -> list[_Record]:
        """The records of the other jobs that are alive."""
        records = []
        for path in self.folder.glob(_JOB):
            if path.name != self.job and self._lives(path.name):
                with contextlib.suppress(FileNotFoundError):
                    records.append(_record(path))
        return records

    def sort(self, cells: Sequence[CellRun]) -> tuple[list[CellRun], list[CellRun]]:
        """The cells that have ended, and those that nobody has; the others are with jobs that are alive.

        Raises:
            RunError: the others have given this job up for dead.
        """
        if not (self.folder / self.job).exists():
            raise RunError(
                f"this comparison was silent for more than {SILENT_SECONDS:.0f} seconds; others go on with its cells.",
                hint="the same command joins them.",
            )
        owners = self._owners()
        alive = {owner for owner in set(owners.values()) if not owner or self._lives(owner)}
        unclaimed = [cell for cell in cells if owners.get(cell.name) not in alive]
        ended = [cell for cell in unclaimed if cell.ended_since(self.since_ns)]
        return ended, [cell for cell in unclaimed if cell not in ended]

    def take(self, cell: CellRun) -> bool:
        """Claims a cell that nobody has; returns whether it is to be run now: no other was faster or has ended it."""
        if cell.is_running:  # the process of a job that was killed a moment ago, or `fedelta resume`
            return False
        numbers = self._numbers(cell.name)
        number = max(numbers, default=-1) + 1
        path = self._claim(cell.name, number)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(self.job)
        except FileExistsError:
            return False
        self._held.add(cell.name)
        # Between the look at the claims and this one others may have come or gone.
        others = [other for other in self._numbers(cell.name) if other != number]
        is_ours = all(other < number and not self._is_held(cell.name, other) for other in others)
        cell.look_anew()
        if is_ours and not cell.ended_since(self.since_ns):
            return True
        self._held.discard(cell.name)
        if is_ours:
            self._remove(cell.name)
        else:
            path.unlink(missing_ok=True)
        return False

    def release(self, cell: CellRun) -> None:
        """Gives a claim back, after the end of its cell."""
        if cell.name in self._held:
            self._held.discard(cell.name)
            self._remove(cell.name)

    def release_all(self) -> None:
        """Gives all claims back."""
        for name in sorted(self._held):
            self._remove(name)
        self._held.clear()

    def forget_the_dead(self) -> None:
        """Removes the files of dead jobs, and then claims whose jobs have no file."""
        for path in self.folder.glob(_JOB):
            if not self._lives(path.name):
                path.unlink(missing_ok=True)
        for path in self.folder.glob("*.claim"):
            owner = _read(path)
            if owner and not (self.folder / owner).exists():
                path.unlink(missing_ok=True)

    def _owners(self) -> dict[str, str]:
        """The name of each claimed cell to the job of its last claim, "" while that is being written."""
        last: dict[str, int] = {}
        for entry in os.listdir(self.folder):  # noqa: PTH208 -- names alone; also has NFS look anew
            if match := _CLAIM.fullmatch(entry):
                last[match["cell"]] = max(last.get(match["cell"], 0), int(match["number"]))
        owners = {}
        for cell, number in last.items():
            path = self._claim(cell, number)
            owner = _read(path)
            # A claim without a job is being written, unless its job was killed just then.
            if owner or (owner == "" and not self._is_silent(path)):
                owners[cell] = owner
        return owners

    def _numbers(self, cell: str) -> list[int]:
        matches = map(_CLAIM.fullmatch, os.listdir(self.folder))  # noqa: PTH208
        return [int(match["number"]) for match in matches if match is not None and match["cell"] == cell]

    def _is_held(self, cell: str, number: int) -> bool:
        path = self._claim(cell, number)
        owner = _read(path)
        return not self._is_silent(path) if owner == "" else owner is not None and self._lives(owner)

    def _claim(self, cell: str, number: int) -> Path:
        return self.folder / f"{cell}.{number}.claim"

    def _remove(self, cell: str) -> None:
        """Removes the claims on a cell of the dead, and then that of this job."""
        for number in sorted(self._numbers(cell)):
            path = self._claim(cell, number)
            if _read(path) == self.job or not self._is_held(cell, number):
                path.unlink(missing_ok=True)

    def _lives(self, job: str) -> bool:
        """Whether a job is alive; removes the file of a dead one, which tells it so in case it was only slow."""
        path = self.folder / job
        if job == self.job:
            return True
        try:
            is_here = _record(path)["machine"] == machine_id()
            is_dead = not is_locked(path) if is_here and sys.platform != "win32" else self._is_silent(path)
        except FileNotFoundError:
            return False
        if is_dead:
            path.unlink(missing_ok=True)
        return not is_dead

    def _is_silent(self, path: Path) -> bool:
        """Whether a file has not been touched for long, by the clock of the file system."""
        mine = self.folder / self.job
        try:
            os.utime(mine)
            now = mine.stat().st_mtime
        except FileNotFoundError:  # the others have given this job up, which must not judge them now
            return False
        try:
            return now - path.stat().st_mtime > SILENT_SECONDS
        except FileNotFoundError:
            return True


@contextmanager
def joined(folder: Path, request: str) -> Iterator[Claims]:
    """Joins the jobs on a directory, and gives all claims back at the end.

    Args:
        folder: for claims, which exists.
        request: what this job compares; all have to compare the same.

    Raises:
        RunError: the jobs that are at work compare something else.
    """
    name = f"{machine_id()}-{os.getpid()}-{secrets.token_hex(4)}.job"
    # Locked before it has its name, so that nobody sees it without its lock.
    unnamed = folder / f".{name}.partial"
    unnamed.touch(exist_ok=False)
    try:
        with exclusive(unnamed, f"{str(unnamed)!r} is locked."):
            claims = Claims(folder, unnamed.name, unnamed.stat().st_mtime_ns)
            claims.since_ns = min([claims.since_ns, *(record["since_ns"] for record in claims.others())])
            digest = hashlib.sha256(request.encode()).hexdigest()
            record = _Record(machine=machine_id(), request=digest, since_ns=claims.since_ns)
            unnamed.write_text(json.dumps(record), encoding="utf-8")
            claims.job = name
            unnamed.rename(folder / name)
            yield from _member(claims, digest)
    finally:
        unnamed.unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)


def _member(claims: Claims, digest: str) -> Iterator[Claims]:
    if any(record["request"] != digest for record in claims.others()):
        raise RunError(
            f"another process runs another comparison in {str(claims.folder.parent)!r}.",
            hint="wait for it, end it, or choose another `--out`.",
        )
    claims.forget_the_dead()
    with _beating(claims.folder / claims.job):
        try:
            yield claims
        finally:
            claims.release_all()


@contextmanager
def _beating(path: Path) -> Iterator[None]:
    """Touches a file every now and then, from a thread, because drawing a page or a slow terminal can take long."""
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, ended.wait), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _beat(path: Path, wait: Callable[[float], bool]) -> None:
    while not wait(BEAT_SECONDS):
        # If it is gone, `sort` says so; a file server that does not answer may do so the next time.
        with contextlib.suppress(OSError):
            os.utime(path)


def _record(path: Path) -> _Record:
    record: _Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def _read(path: Path) -> str | None:
    """The job in a claim, "" if there is none yet; None if the claim is gone."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
