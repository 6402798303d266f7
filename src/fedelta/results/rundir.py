"""The run directory: names of its files, its creation as a whole, and the way back to a checkpoint.

config.toml           the configuration as it was read, every default written out; of a run that started from an adapter
                      `[tuning]` is the adapter's
environment.json      versions, machine, commit
citations.bib         papers behind what the run used
partition.json        class names, examples of each class by client, apart those of clients that no round asks, and
                      what the clients are called
model.json            parameter counts, of each group too, so that an unfinished run can be reported; and `[strategy]`
                      with what a byte budget made of it
rounds.jsonl          one record a round, determined by seed and configuration
ledger.jsonl          one row per payload, after the row of the backbone
timings.jsonl         wall-clock seconds and memory by round
checkpoint/           the state after the last finished round; in clients/ what each client keeps, a file for each
summary.json          written at the end
confusion.json        how often each class was taken for which, where the task has classes; written at the end
adapter/              the tuned tensors for deployment, written at the end
exits.json            what an answer from each exit costs, where the model has exits; written at the end
personalization.json  what clients that no round asked made of it, written by `fedelta personalize`
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedelta.durable import sync_directory, write_atomic
from fedelta.errors import RunError
from fedelta.results.checkpoint import Checkpoint
from fedelta.results.files import JsonLines, Record, exclusive, to_json

CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
CITATIONS = "citations.bib"
PARTITION = "partition.json"
MODEL = "model.json"
ROUNDS = "rounds.jsonl"
LEDGER = "ledger.jsonl"
TIMINGS = "timings.jsonl"
CHECKPOINT = "checkpoint/state.safetensors"
CLIENTS = "checkpoint/clients"
SUMMARY = "summary.json"
CONFUSION = "confusion.json"
ADAPTER = "adapter"
EXITS = "exits.json"
PERSONALIZATION = "personalization.json"

# With these a run can be resumed; `create` wants them and `open` looks for them.
REQUIRED = (CONFIG, ENVIRONMENT, CITATIONS, LEDGER, CHECKPOINT)


@dataclass(frozen=True)
class RunDirectory:
    """An existing run directory.

    Args:
        path: as the user gave it.
    """

    path: Path

    @classmethod
    def create(cls, out: Path, files: Mapping[str, str | bytes]) -> RunDirectory:
        """A new run directory at `out`; it appears complete or not at all.

        Args:
            out: must not exist or be empty; missing parents are made.
            files: content by relative name, at least the names in `REQUIRED`; the logs start empty.

        Raises:
            RunError: `out` is taken.
            OSError: the disk is full or the place cannot be written; nothing is left behind then.
        """
        missing = [name for name in REQUIRED if name not in files]
        if missing:
            raise ValueError(f"a run directory needs {missing} from the start")
        refuse_taken(out)
        target = out.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        building = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            for name, content in {ROUNDS: b"", TIMINGS: b"", **files}.items():
                (building / name).parent.mkdir(parents=True, exist_ok=True)
                write_atomic(building / name, content)
            sync_directory(building)
            if target.is_dir():
                target.rmdir()
            building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        sync_directory(target.parent)
        return cls(out)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The run directory at `path`.

        Raises:
            RunError: it is missing, is no directory or lacks files, all of which are named.
        """
        if not path.is_dir():
            problem = "is not a directory" if path.exists() else "does not exist"
            raise RunError(f"run directory {str(path)!r} {problem}.")
        missing = [name for name in REQUIRED if not (path / name).is_file()]
        if missing:
            raise RunError(
                f"{str(path)!r} is not a complete run directory: it lacks {', '.join(missing)}.",
                hint="give the directory that `fedelta run` printed, the one that holds `config.toml`.",
            )
        return cls(path)

    @property
    def config(self) -> Path:
        """The configuration, every default written out."""
        return self.path / CONFIG

    @property
    def checkpoint(self) -> Path:
        """State after the last finished round."""
        return self.path / CHECKPOINT

    @property
    def clients(self) -> Path:
        """What clients keep between rounds, where they are in this process."""
        return self.path / CLIENTS

    @property
    def ledger(self) -> Path:
        """One row per payload."""
        return self.path / LEDGER

    @property
    def summary(self) -> Path:
        """Key figures; there once the run is finished."""
        return self.path / SUMMARY

    @property
    def adapter(self) -> Path:
        """Directory of the tuned tensors; there once the run is finished."""
        return self.path / ADAPTER

    @property
    def rounds(self) -> JsonLines:
        """One record a round."""
        return JsonLines(self.path / ROUNDS)

    @property
    def timings(self) -> JsonLines:
        """Wall-clock seconds and memory by round."""
        return JsonLines(self.path / TIMINGS)

    def read_rounds(self) -> list[Record]:
        """The records of all finished rounds.

        Raises:
            RunError: a line is broken, or the run is of an older format.
        """
        records = self.rounds.read()
        if any("measures" not in record for record in records):
            raise RunError(
                f"{str(self.path / ROUNDS)!r} has rounds without `measures`: an older version of fedelta wrote them.",
                hint=f"use the version that {ENVIRONMENT} names, or run {CONFIG} again with this one.",
            )
        return records

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from writing to this run; see `exclusive`.

        Raises:
            RunError: another process has the lock.
        """
        with exclusive(self.config, f"another process is running or resuming {str(self.path)!r}."):
            yield

    def rewind(self, checkpoint: Checkpoint) -> None:
        """Cuts logs and ledger back to the moment of `checkpoint`: a kill may have left them ahead of it.

        Raises:
            RunError: a file is shorter than it was then.
        """
        self.rounds.truncate(checkpoint.lengths.rounds)
        JsonLines(self.ledger).truncate(checkpoint.lengths.ledger)
        self.timings.truncate(checkpoint.lengths.timings)

    def write_summary(self, summary: Record) -> None:
        """Writes `summary.json`, atomically; its presence marks the run as finished."""
        write_atomic(self.summary, to_json(summary, indent=2) + "\n")


def refuse_taken(out: Path) -> None:
    """Checks that a run may be created at `out`; callable before the expensive part of the set-up.

    Raises:
        RunError: `out` is a file or a directory with content.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{str(out)!r} is a file, expected a new or empty directory.", hint="choose another `--out`.")
    if out.is_dir() and any(out.iterdir()):
        kind = "already holds a run" if (out / CONFIG).exists() else "is not empty"
        raise RunError(
            f"{str(out)!r} {kind}.",
            hint=f"continue it with `fedelta resume {out}`, or choose another `--out`.",
        )


def free_name(parent: Path, stem: str) -> Path:
    """The first of `parent/stem`, `parent/stem-2`, `parent/stem-3` … that does not exist."""
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(path for name in names if not (path := parent / name).exists())
