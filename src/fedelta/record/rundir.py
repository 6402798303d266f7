"""The run directory: its files, its atomic creation, and the return to a checkpoint.

config.toml           the configuration as it was read, every default written out; of a run that started from an adapter
                      `[tuning]` is the adapter's
environment.json      versions, machine, commit
citations.bib         papers behind what the run used
partition.json        class names, examples of each class by client, those of held-out clients apart, and
                      what the clients are called; of a deployment the clients of each site instead of the classes
model.json            parameter counts, of each group too, so that an unfinished run can be reported; and `[strategy]`
                      with what a byte budget made of it
privacy.json          what the run promises to whom, if it promises anything (privacy.py)
rounds.jsonl          one record a round, determined by seed and configuration
ledger.jsonl          one row per payload, after the row of the backbone
timings.jsonl         wall-clock seconds and memory by round; may be missing
checkpoint/           the state after the last finished round, with digests of the logs up to it and of all that the run
                      began with; in clients/ what each client keeps, a file for each; privacy.key, with which the
                      noise of a private run could be taken out again, for its owner only
summary.json          written at the end
confusion.json        the confusion matrix, if the task has classes; written at the end
mistakes.json         a few test examples that the finished model answered wrongly, small images and beginnings of texts
                      among them; written at the end, not by deployments
skipped.csv           examples that could not be read and were left out, if there are any: set, row, file, reason
adapter/              the tuned tensors for deployment, written at the end
exits.json            the cost of an answer at each exit, if the model has exits; written at the end
personalization.json  measures of held-out clients before and after fine-tuning, written by `fedelta personalize`
audit.json            how much of epsilon trials have shown, written by `fedelta audit`
status.json           what a deployed run is doing, for those who follow it (status.py)
changes.jsonl         settings that were changed after the run began: after which round, before and after, and in what
                      the run differs from one that had them from the start (amending.py)
after-N-rounds/       results of the run when it was finished after N rounds, before it went on
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedelta.durable import sync_directory, write_atomic, write_secret
from fedelta.errors import RunError
from fedelta.machine import machine_id
from fedelta.plugins import refuse_missing
from fedelta.record.checkpoint import OTHER_VERSION, Checkpoint
from fedelta.record.files import JsonLines, Record, Seal, exclusive, read_json, to_json
from fedelta.record.keys import KEY
from fedelta.record.missing import advice
from fedelta.record.status import read_status

CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
CITATIONS = "citations.bib"
PARTITION = "partition.json"
MODEL = "model.json"
PRIVACY = "privacy.json"
AUDIT = "audit.json"
ROUNDS = "rounds.jsonl"
LEDGER = "ledger.jsonl"
TIMINGS = "timings.jsonl"
CHECKPOINT = "checkpoint/state.safetensors"
CLIENTS = "checkpoint/clients"
SUMMARY = "summary.json"
CONFUSION = "confusion.json"
MISTAKES = "mistakes.json"
SKIPPED = "skipped.csv"
ADAPTER = "adapter"
EXITS = "exits.json"
PERSONALIZATION = "personalization.json"
CHANGES = "changes.jsonl"

# The name of a run directory while it is being made, with machine and number of the process.
_UNFINISHED = re.compile(r"\..+\.(?P<machine>[0-9a-f]+)-(?P<pid>\d{1,10})\.partial")

# The files that a run directory must have, for `create` and `open`.
REQUIRED = (CONFIG, ENVIRONMENT, CITATIONS, LEDGER, CHECKPOINT)
_FILES = (
    PARTITION,
    MODEL,
    PRIVACY,
    ROUNDS,
    TIMINGS,
    SUMMARY,
    CONFUSION,
    MISTAKES,
    SKIPPED,
    EXITS,
    PERSONALIZATION,
    AUDIT,
    CHANGES,
)


@dataclass(frozen=True)
class RunDirectory:
    """An existing run directory.

    Args:
        path: as the user gave it.
    """

    path: Path

    @classmethod
    def create(cls, out: Path, files: Mapping[str, str | bytes]) -> RunDirectory:
        """Makes a new run directory at `out`, atomically.

        Args:
            out: must not exist, or be empty; missing parents are created.
            files: content by relative name, at least the names in `REQUIRED`; the logs start empty.

        Raises:
            RunError: `out` is taken.
            OSError: the disk is full or the place cannot be written; nothing is left behind.
        """
        missing = [name for name in REQUIRED if name not in files]
        if missing:
            raise ValueError(f"a run directory needs {missing} from the start")
        refuse_taken(out)
        target = out.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep_unfinished(target.parent)
        building = target.with_name(f".{target.name}.{machine_id()}-{os.getpid()}.partial")
        try:
            for name, content in {ROUNDS: b"", TIMINGS: b"", **files}.items():
                (building / name).parent.mkdir(parents=True, exist_ok=True)
                _write(building / name, content)
            sync_directory(building)
            if target.is_dir():
                target.rmdir()
            building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        sync_directory(target.parent)
        return cls(out)

    def complete(self, files: Mapping[str, str | bytes]) -> None:
        """Writes the files of a run that has only its configuration; the checkpoint, which shows that it began, last.

        Args:
            files: as for `create`.
        """
        content = {ROUNDS: b"", TIMINGS: b"", **files}
        for name in sorted(content, key=lambda name: name == CHECKPOINT):
            path, text = self.path / name, content[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            # The configuration is locked as long as the run is written to, and usually right.
            if not path.is_file() or path.read_bytes() != (text.encode() if isinstance(text, str) else text):
                _write(path, text)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The run directory at `path`.

        Raises:
            RunError: it is missing, is not a directory, or lacks files; names all of them.
            PluginError: it was made with plug-ins that are not loaded.
        """
        if not path.is_dir():
            problem = "is not a directory" if path.exists() else "does not exist"
            where = "" if path.exists() else f" (looked in {str(path.absolute().parent)!r})"
            raise RunError(f"run directory {str(path)!r} {problem}{where}.", hint=advice(path))
        missing = [name for name in REQUIRED if not (path / name).is_file()]
        if missing and (status := read_status(path)) is not None:
            said = f" ({status.state}: {status.text})" if status.text else f" ({status.state})"
            raise RunError(f"the deployment {str(path)!r} has no rounds yet{said}.", hint=status.hint or None)
        if missing:
            raise RunError(
                f"{str(path)!r} is not a complete run directory: it lacks {', '.join(missing)}.", hint=advice(path)
            )
        if directories := [name for name in _FILES if (path / name).is_dir()]:
            raise RunError(
                f"{str(path)!r} has directories where files belong: {', '.join(directories)}.",
                hint="move them out of it; bring the files back from a copy.",
            )
        run = cls(path)
        refuse_missing(run.plugins, f"run {str(path)!r}")
        return run

    @property
    def is_deployed(self) -> bool:
        """Whether its clients are at sites."""
        partition = self.path / PARTITION
        return partition.is_file() and "sites" in read_json(partition)

    @property
    def plugins(self) -> object:
        """The records of the plug-ins that it was made with (`used_by`); None if they cannot be read."""
        try:
            environment = json.loads((self.path / ENVIRONMENT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return environment.get("plugins") if isinstance(environment, dict) else None

    @property
    def config(self) -> Path:
        """The configuration, with all defaults."""
        return self.path / CONFIG

    @property
    def checkpoint(self) -> Path:
        """The state after the last finished round."""
        return self.path / CHECKPOINT

    @property
    def clients(self) -> Path:
        """The clients' memories, if the clients run in this process."""
        return self.path / CLIENTS

    @property
    def ledger(self) -> Path:
        """The ledger, with one row per payload."""
        return self.path / LEDGER

    @property
    def summary(self) -> Path:
        """Key figures; exists once the run is finished."""
        return self.path / SUMMARY

    @property
    def adapter(self) -> Path:
        """Directory of the adapter; exists once the run is finished."""
        return self.path / ADAPTER

    @property
    def rounds(self) -> JsonLines:
        """The log with one record per round."""
        return JsonLines(self.path / ROUNDS)

    @property
    def timings(self) -> JsonLines:
        """The log with wall-clock seconds and memory by round."""
        return JsonLines(self.path / TIMINGS)

    def read_rounds(self) -> list[Record]:
        """The records of all finished rounds.

        Raises:
            RunError: a line is damaged, or the run has an older format.
        """
        records = self.rounds.read()
        if any("measures" not in record for record in records):
            raise RunError(
                f"{str(self.path / ROUNDS)!r} has rounds without `measures`: an older version of fedelta wrote them.",
                hint=OTHER_VERSION,
            )
        return records

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context manager that keeps other processes from writing to this run; see `exclusive`.

        Raises:
            RunError: another process has the lock.
        """
        with exclusive(self.config, f"another process is running or resuming {str(self.path)!r}."):
            yield

    def seals(self) -> dict[str, Seal]:
        """Name of each log to its seal; without `timings.jsonl`, on which nothing depends."""
        return {name: Seal(self.path / name) for name in (ROUNDS, LEDGER)}

    def changed_logs(self, checkpoint: Checkpoint, seals: Mapping[str, Seal]) -> list[str]:
        """Messages about changes in the logs before `checkpoint`; reads the seals up to there."""
        problems = []
        for name, sealed in checkpoint.logs.items():
            current = seals[name].mark(sealed.num_bytes)
            if current.num_bytes < sealed.num_bytes:
                problems.append(
                    f"{str(self.path / name)!r} has {current.num_bytes} bytes, the checkpoint was written when it had "
                    f"{sealed.num_bytes}"
                )
            elif current != sealed:
                problems.append(f"{str(self.path / name)!r} is not as the run wrote it up to round {checkpoint.round}")
        return problems

    def rewind(self, checkpoint: Checkpoint) -> dict[str, Seal]:
        """Cuts the logs back to the state of `checkpoint`, because a kill may have left them ahead of it.

        Returns:
            The seals of the logs, read up to there.

        Raises:
            RunError: a log is shorter than it was then, or has changed; nothing is cut.
        """
        seals = self.seals()
        if problems := self.changed_logs(checkpoint, seals):
            raise RunError(
                f"{'; '.join(problems)}.",
                hint="the file was cut, edited or replaced; restore it from a copy, or start the run anew with another "
                "`--out`.",
            )
        for name, mark in checkpoint.logs.items():
            JsonLines(self.path / name).truncate(mark.num_bytes)
        self.timings.salvage(checkpoint.round)
        return seals

    def refuse_unfinished(self) -> None:
        """Raises if the run is not finished.

        Raises:
            RunError: the run is not finished.
        """
        if not (self.summary.is_file() and self.adapter.is_dir()):
            raise RunError(
                f"run {str(self.path)!r} is not finished.", hint=f"finish it with `fedelta resume {self.path}`."
            )

    def sweep(self) -> None:
        """Removes partial files and adapters that killed processes have left."""
        for folder in (self.path, self.checkpoint.parent, self.clients):
            for leftover in folder.glob(".*.partial") if folder.is_dir() else ():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def write_summary(self, summary: Record) -> None:
        """Writes `summary.json`, atomically; its presence marks the run as finished."""
        write_atomic(self.summary, to_json(summary, indent=2) + "\n")


def _write(path: Path, content: str | bytes) -> None:
    """Writes a file of a new run, the key for its owner only."""
    if isinstance(content, bytes) and path.name == Path(KEY).name:
        write_secret(path, content)
    else:
        write_atomic(path, content)


def _sweep_unfinished(parent: Path) -> None:
    """Removes partial run directories that killed processes have left."""
    for folder in parent.glob(".*.partial"):
        match = _UNFINISHED.fullmatch(folder.name)
        is_ours = match is not None and match["machine"] == machine_id() and folder.is_dir() and not folder.is_symlink()
        if is_ours and match is not None and not _is_alive(int(match["pid"])) and _holds_only_ours(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _holds_only_ours(folder: Path) -> bool:
    expected = {name.partition("/")[0] for name in (*REQUIRED, PARTITION, MODEL, PRIVACY, SKIPPED, ROUNDS, TIMINGS)}
    return {entry.name.removeprefix(".").removesuffix(".partial") for entry in folder.iterdir()} <= expected


def _is_alive(pid: int) -> bool:
    """Whether this process exists; True if that cannot be determined."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def refuse_taken(out: Path) -> None:
    """Raises if no run can be created at `out`; called before the expensive part of the set-up.

    Raises:
        RunError: `out` is a file, lies below one, or is a directory with content.
    """
    if file := next((place for place in (out, *out.parents) if place.exists() and not place.is_dir()), None):
        expected = "a new or empty directory" if file == out else "a directory"
        raise RunError(f"{str(file)!r} is a file, expected {expected}.", hint="choose another `--out`.")
    if out.is_dir() and any(out.iterdir()):
        kind = "already holds a run" if (out / CONFIG).exists() else "is not empty"
        raise RunError(
            f"{str(out)!r} {kind}.",
            hint=f"continue it with `fedelta resume {out}`, or choose another `--out`.",
        )


def at_their_sites(run: RunDirectory) -> RunError:
    """The error where a client's model is needed that only its site has."""
    return RunError(
        f"run {str(run.path)!r} has one model per client, because clients keep tensors of their own: these are at "
        "their sites.",
        hint="its sites have measured them: see `summary.json` and the page of the run.",
    )


def free_name(parent: Path, stem: str) -> Path:
    """The first of `parent/stem`, `parent/stem-2`, `parent/stem-3`, ... that does not exist."""
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(path for name in names if not (path := parent / name).exists())
