"""Changes of a run's settings after it began, so that a kill leaves the run as it was or with all of the change.

`amend` first writes down the whole change, in `amendment.json`; every step after that can be repeated, and `complete`
repeats them after a kill. What a finished run came to is set aside, in `after-N-rounds/`, when the run goes on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedelta.durable import sync_directory, write_all, write_atomic
from fedelta.record.checkpoint import Checkpoint, load, save
from fedelta.record.files import JsonLines, Mark, Record, read_json, to_json
from fedelta.record.rundir import (
    ADAPTER,
    AUDIT,
    CHANGES,
    CONFIG,
    CONFUSION,
    MISTAKES,
    PERSONALIZATION,
    SUMMARY,
    RunDirectory,
)

AMENDMENT = "amendment.json"
# The summary first: without it the run counts as unfinished.
_RESULTS = (SUMMARY, ADAPTER, CONFUSION, MISTAKES, PERSONALIZATION, AUDIT, "report.html")


@dataclass(frozen=True)
class Amendment:
    """A change of settings.

    Args:
        config: the new content of `config.toml`.
        settings: the settings that the run goes on with, as in `Origin`.
        changed: dotted key of each changed setting to its text before and after; None where it is absent.
        departures: in what the run differs from one that had these settings from the start.
        goes_on: whether a finished run may have further rounds.
    """

    config: str
    settings: Mapping[str, str]
    changed: Mapping[str, tuple[str | None, str | None]]
    departures: tuple[str, ...] = ()
    goes_on: bool = False

    def applied(self, checkpoint: Checkpoint, files: Mapping[str, str]) -> Checkpoint:
        """`checkpoint` of a run that has these settings.

        Args:
            checkpoint: of the run.
            files: new content of files that follow from the settings, by relative name.
        """
        origin = checkpoint.origin
        digests = {name: Mark.of(text.encode()).digest for name, text in files.items()}
        return replace(checkpoint, origin=replace(origin, settings=self.settings, files={**origin.files, **digests}))


def amend(run: RunDirectory, amendment: Amendment, checkpoint: Checkpoint, files: Mapping[str, str]) -> None:
    """Changes the settings of a run; the caller has its lock and has checked that it can go on with them.

    Args:
        run: the directory.
        amendment: the change.
        checkpoint: of the run, before the change.
        files: as for `Amendment.applied`.
    """
    line = {
        "round": checkpoint.round,
        "changed": {key: list(values) for key, values in amendment.changed.items()},
        "departures": list(amendment.departures),
    }
    log = run.path / CHANGES
    changes = (log.read_text(encoding="utf-8") if log.exists() else "") + to_json(line) + "\n"
    aside = f"after-{checkpoint.round}-rounds" if amendment.goes_on and run.summary.exists() else None
    record = {
        "aside": aside,
        "config": amendment.config,
        "files": {**files, CHANGES: changes},
        "settings": dict(amendment.settings),
        "digests": dict(amendment.applied(checkpoint, files).origin.files),
    }
    write_atomic(run.path / AMENDMENT, to_json(record))
    _take_effect(run, record)


def is_interrupted(run: RunDirectory) -> bool:
    """Whether a kill has interrupted `amend`."""
    return (run.path / AMENDMENT).exists()


def complete(run: RunDirectory) -> None:
    """Completes a change that a kill has interrupted, if there is one.

    Raises:
        RunError: another process writes to the run.
    """
    if is_interrupted(run):
        with run.locked():
            _take_effect(run, read_json(run.path / AMENDMENT))


def changes_of(path: Path) -> list[Record]:
    """The changes of the run directory at `path`: round after which, `changed` settings, `departures`."""
    return JsonLines(path / CHANGES).read()


def _take_effect(run: RunDirectory, record: Record) -> None:
    if record["aside"] is not None:
        _set_aside(run.path, run.path / record["aside"])
    for name, text in record["files"].items():
        write_atomic(run.path / name, text)
    checkpoint = load(run.checkpoint)
    origin = replace(checkpoint.origin, settings=record["settings"], files=record["digests"])
    save(run.checkpoint, replace(checkpoint, origin=origin))
    # In place, because the lock of the run is on this file. If a kill cuts it, `complete` writes it again.
    with (run.path / CONFIG).open("r+b", buffering=0) as file:
        content = record["config"].encode()
        write_all(file.fileno(), content)
        file.truncate(len(content))
        os.fsync(file.fileno())
    (run.path / AMENDMENT).unlink()
    sync_directory(run.path)


def _set_aside(run: Path, folder: Path) -> None:
    """Moves what the finished run came to into `folder`; what is there already is from a kill, or equal."""
    folder.mkdir(exist_ok=True)
    for name in _RESULTS:
        source, target = run / name, folder / name
        if not source.exists():
            continue
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(source, target)  # noqa: PTH105 -- the tests replace `os.replace` by a failing one
    sync_directory(folder)
    sync_directory(run)
