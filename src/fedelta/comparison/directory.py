"""The directory of a comparison and the runs in it.

compare.toml          the request
plugins.json          the loaded plug-in files, if any
runs/                 a run directory for each cell
search/               a run directory for each trial of the search
failures/             the error of each failed cell, as text
claims/               which of the processes that share the directory runs which cell (claims.py)
logs/                 standard output and standard error of each process
table.csv, .md, .tex  one row for each group of cells that differ in their seed only
cells.csv, search.csv one row for each cell, and for each trial
report.html           tables and figures
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedelta.comparison.cells import Cell, slugs
from fedelta.config import Config, parse_config
from fedelta.durable import write_atomic
from fedelta.errors import ConfigError, RunError
from fedelta.machine import machine_id
from fedelta.plugins import changed_plugins, file_records
from fedelta.record.files import flatten, is_locked, to_json
from fedelta.record.rundir import CONFIG, SUMMARY, RunDirectory
from fedelta.tracking.settings import Tracking

ASKED = "compare.toml"
PLUGINS = "plugins.json"
_MARK = ".lock"
_FOLDERS = ("runs", "search", "failures", "claims", "logs")
_NUM_SHOWN = 3  # differences between two configurations in a message


def default_out(config: str | Path | Config) -> Path:
    """The directory of a comparison: `runs/compare-<name of its file>`, or that of its `compare.toml`."""
    if isinstance(config, Config):
        return Path("runs") / "compare"
    path = Path(config)
    is_inside = path.name == ASKED and (path.parent / _MARK).exists()
    return path.parent if is_inside else Path("runs") / f"compare-{path.stem}"


@dataclass(frozen=True)
class CellRun:
    """A cell with the paths of its files.

    Args:
        cell: what to run.
        path: of its run directory.
        failure: holds the text of its error, if it failed.
        log: holds standard output and standard error of its process.
    """

    cell: Cell
    path: Path
    failure: Path
    log: Path

    @property
    def name(self) -> str:
        """The name of its files; no other cell or trial in the directory has it."""
        return self.failure.stem

    @property
    def is_finished(self) -> bool:
        """Whether the run has finished."""
        return (self.path / SUMMARY).exists()

    @property
    def is_running(self) -> bool:
        """Whether a process runs or resumes it now, on this machine or wherever the file system carries locks."""
        with suppress(FileNotFoundError):
            return is_locked(self.path / CONFIG)
        return False

    def ended_since(self, time_ns: int) -> bool:
        """Whether the run has finished, or failed since that time, which is one of the file system."""
        try:
            return self.is_finished or self.failure.stat().st_mtime_ns >= time_ns
        except FileNotFoundError:
            return False

    def look_anew(self) -> None:
        """Has a network file system ask its server what is there, instead of what it remembers to be missing."""
        for folder in (self.path.parent, self.path, self.failure.parent):
            with suppress(OSError):
                os.listdir(folder)  # noqa: PTH208 -- `iterdir` is not opened before its first entry is asked for

    def reason(self) -> str | None:
        """The text of its error; None if it has not failed."""
        if self.is_finished or not self.failure.exists():
            return None
        return self.failure.read_text(encoding="utf-8", errors="replace").strip()


@dataclass(frozen=True)
class ComparisonDirectory:
    """The directory of a comparison, which may not exist yet.

    Args:
        path: as the user gave it.
    """

    path: Path

    def refuse_foreign(self) -> None:
        """Raises unless the directory is new or holds a comparison; call it before anything is written.

        Raises:
            RunError: a file, or a directory with other content.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{str(self.path)!r} is a file, expected a directory.", hint="choose another `--out`.")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / _MARK).exists():
            kind = "is a run directory" if (self.path / CONFIG).exists() else "holds other things"
            raise RunError(
                f"{str(self.path)!r} {kind}, expected a new directory or one that `fedelta compare` made.",
                hint="choose another `--out`.",
            )

    def make(self) -> None:
        """Makes the directory and its folders, unless they are there."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / _MARK).touch()
        for name in _FOLDERS:
            (self.path / name).mkdir(exist_ok=True)

    @property
    def claims(self) -> Path:
        """The folder of claims."""
        return self.path / "claims"

    def write(self, name: str, content: str) -> None:
        """Replaces the file `name` as a whole; of several processes that do so at once, the last one wins."""
        write_atomic(self.path / name, content, writer=f".{machine_id()}-{os.getpid()}")

    @property
    def plugins(self) -> object:
        """The records of its plug-in files; None if there are none, or if they cannot be read."""
        try:
            return json.loads((self.path / PLUGINS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write_plugins(self) -> None:
        """Records the loaded plug-in files, if any."""
        if records := file_records():
            self.write(PLUGINS, to_json(records, indent=2) + "\n")

    def clean(self, before_ns: int) -> None:
        """Removes the incomplete run directories of killed processes, when no other process is at work.

        Args:
            before_ns: only what was made before that time of the file system.
        """
        for folder in ("runs", "search"):
            for partial in (self.path / folder).glob(".*.partial"):
                with suppress(FileNotFoundError):
                    if partial.stat().st_mtime_ns < before_ns:
                        shutil.rmtree(partial, ignore_errors=True)

    def jobs(self, cells: Sequence[Cell]) -> list[CellRun]:
        """The cells with their directories: one that already holds the same configuration, or one named after the cell.

        Raises:
            RunError: a directory of that name holds another configuration; the message says what differs.
        """
        folder = self.path / ("search" if cells and cells[0].is_trial else "runs")
        configs = {path.parent: _read(path) for path in sorted(folder.glob(f"[!.]*/{CONFIG}"))}
        names = slugs(cells)
        jobs: list[CellRun] = []
        problems: dict[str, list[Path]] = {}
        for cell in cells:
            path, difference = _place(folder / names[cell.name], cell.config, configs)
            if difference:
                problems.setdefault(difference, []).append(path)
            name = f"{'search-' if cell.is_trial else ''}{path.name}.txt"
            jobs.append(CellRun(cell, path, self.path / "failures" / name, self.path / "logs" / name))
        if problems:
            lines = "".join(f"\n  - {_several(paths)}: {problem}" for problem, paths in problems.items())
            raise RunError(
                f"run directories in {str(self.path)!r} hold other configurations than are asked for now:{lines}",
                hint="choose another `--out`, or remove those directories to run their cells anew.",
            )
        return jobs


def _place(named: Path, config: Config, configs: Mapping[Path, str]) -> tuple[Path, str]:
    """The run directory of a configuration, and why it cannot be used ("" if it can).

    Args:
        named: the directory of the cell's name.
        config: of the cell.
        configs: run directories to their configurations.
    """
    text = _comparable(config)
    equal_paths = [path for path, stored in configs.items() if stored == text]
    if equal_paths:
        place = named if named in equal_paths else equal_paths[0]
        return place, "; ".join(changed_plugins(RunDirectory(place).plugins))
    return named, _difference(configs[named], text, config) if named in configs else ""


def _comparable(config: Config) -> str:
    """A configuration as text, without the sections that do not affect results."""
    return config.model_copy(update={"tracking": Tracking()}).to_toml()


def _read(path: Path) -> str:
    """The configuration of a run, completed with defaults; a damaged one as it is."""
    text = path.read_text(encoding="utf-8")
    try:
        return _comparable(parse_config(tomllib.loads(text)))
    except (ConfigError, ValueError):
        return text


def _difference(text: str, new_text: str, config: Config) -> str:
    """The differences between the configuration `text` of a run and the requested one; empty if none matters."""
    try:
        old_values = dict(flatten(tomllib.loads(text)))
    except ValueError:
        return "its `config.toml` is damaged"
    new_values = dict(flatten(tomllib.loads(new_text)))
    keys = [key for key in dict.fromkeys([*old_values, *new_values]) if old_values.get(key) != new_values.get(key)]
    # A run that starts from an adapter has the adapter's tuning method and task in its configuration.
    if config.model.adapter is not None:
        keys = [key for key in keys if not key.startswith(("tuning.", "task."))]
    shown = [
        f"`{key}` is {old_values.get(key, 'absent')} there, {new_values.get(key, 'absent')} now"
        for key in keys[:_NUM_SHOWN]
    ]
    return "; ".join(shown) + (f"; and {len(keys) - _NUM_SHOWN} more" if len(keys) > _NUM_SHOWN else "")


def _several(paths: Sequence[Path]) -> str:
    first = f"{paths[0].parent.name}/{paths[0].name}"
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
