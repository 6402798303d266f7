"""The directory of a comparison, and what is already done in it.

compare.toml          what was asked
plugins.json          the plug-in files that were given, if any
runs/                 a run directory for each cell
search/               a run directory for each trial of the search
failures/             the error of each cell that failed, as text
logs/                 what the processes wrote to standard output and standard error
table.csv, table.md   one row for each group of cells that differ in their seed only
cells.csv, search.csv one row for each cell, and for each trial
report.html           tables and figures
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedelta.comparison.cells import Cell, slugs
from fedelta.config import Config, parse_config
from fedelta.durable import write_atomic
from fedelta.errors import ConfigError, RunError
from fedelta.plugins import changed_plugins, file_records
from fedelta.record.files import exclusive, flatten, to_json
from fedelta.record.rundir import CONFIG, SUMMARY, RunDirectory
from fedelta.tracking.settings import Tracking

ASKED = "compare.toml"
PLUGINS = "plugins.json"
_LOCK = ".lock"
_FOLDERS = ("runs", "search", "failures", "logs")
_NUM_SHOWN = 3  # differences between two configurations in a message


def default_out(config: str | Path | Config) -> Path:
    """Where a comparison goes: `runs/compare-<name of its file>`; one of a `compare.toml` goes on beside that file."""
    if isinstance(config, Config):
        return Path("runs") / "compare"
    path = Path(config)
    is_inside = path.name == ASKED and (path.parent / _LOCK).exists()
    return path.parent if is_inside else Path("runs") / f"compare-{path.stem}"


@dataclass(frozen=True)
class Job:
    """A cell and where it runs.

    Args:
        cell: what to run.
        path: of its run directory.
        failure: where the text of its error stands, if it failed.
        log: where its process writes what it has to say.
    """

    cell: Cell
    path: Path
    failure: Path
    log: Path

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / SUMMARY).exists()

    def reason(self) -> str | None:
        """Why it failed; None if it did not, or has not run yet."""
        if self.is_finished or not self.failure.exists():
            return None
        return self.failure.read_text(encoding="utf-8", errors="replace").strip()


@dataclass(frozen=True)
class ComparisonDirectory:
    """A directory in which a comparison is, or will be.

    Args:
        path: as the user gave it.
    """

    path: Path

    def refuse_foreign(self) -> None:
        """Checks that nothing but a comparison is there; call it before anything is written.

        Raises:
            RunError: a file, or a directory with other content.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{str(self.path)!r} is a file, expected a directory.", hint="choose another `--out`.")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / _LOCK).exists():
            kind = "is a run directory" if (self.path / CONFIG).exists() else "holds other things"
            raise RunError(
                f"{str(self.path)!r} {kind}, expected a new directory or one that `fedelta compare` made.",
                hint="choose another `--out`.",
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the directory and keeps a second comparison out of it; see `exclusive`.

        Raises:
            RunError: another process has the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / _LOCK
        lock.touch()
        with exclusive(lock, f"another process runs a comparison in {str(self.path)!r}."):
            for name in _FOLDERS:
                (self.path / name).mkdir(exist_ok=True)
            yield

    def write(self, name: str, content: str) -> None:
        """Replaces the file `name` as a whole."""
        write_atomic(self.path / name, content)

    @property
    def plugins(self) -> object:
        """The plug-in files that it was made with; None where there were none, or where that cannot be read."""
        try:
            return json.loads((self.path / PLUGINS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write_plugins(self) -> None:
        """Notes the plug-in files that are loaded, if any."""
        if records := file_records():
            self.write(PLUGINS, to_json(records, indent=2) + "\n")

    def clean(self) -> None:
        """Removes what a kill left of run directories that were being made."""
        for folder in ("runs", "search"):
            for rest in (self.path / folder).glob(".*.partial"):
                shutil.rmtree(rest, ignore_errors=True)

    def jobs(self, cells: Sequence[Cell]) -> list[Job]:
        """Where each cell runs: in the directory of its name, or in the one that has the same configuration already.

        Raises:
            RunError: a directory of that name belongs to another configuration; says what differs.
        """
        folder = self.path / ("search" if cells and cells[0].is_trial else "runs")
        found = {path.parent: _read(path) for path in sorted(folder.glob(f"*/{CONFIG}"))}
        names = slugs(cells)
        jobs: list[Job] = []
        problems: dict[str, list[Path]] = {}
        for cell in cells:
            path, difference = _place(folder / names[cell.name], cell.config, found)
            if difference:
                problems.setdefault(difference, []).append(path)
            name = f"{'search-' if cell.is_trial else ''}{path.name}.txt"
            jobs.append(Job(cell, path, self.path / "failures" / name, self.path / "logs" / name))
        if problems:
            lines = "".join(f"\n  - {_several(paths)}: {problem}" for problem, paths in problems.items())
            raise RunError(
                f"run directories in {str(self.path)!r} hold other configurations than are asked for now:{lines}",
                hint="choose another `--out`, or remove those directories to run their cells anew.",
            )
        return jobs


def _place(named: Path, config: Config, found: Mapping[Path, str]) -> tuple[Path, str]:
    """The run directory of a configuration, and what speaks against it."""
    wanted = _comparable(config)
    same = [path for path, text in found.items() if text == wanted]
    if same:
        place = named if named in same else same[0]
        return place, "; ".join(changed_plugins(RunDirectory(place).plugins))
    return named, _difference(found[named], wanted, config) if named in found else ""


def _comparable(config: Config) -> str:
    """A configuration without what changes no result."""
    return config.model_copy(update={"tracking": Tracking()}).to_toml()


def _read(path: Path) -> str:
    """The configuration of a run, with defaults for keys that it does not know yet; as it stands where it is bad."""
    text = path.read_text(encoding="utf-8")
    try:
        return _comparable(parse_config(tomllib.loads(text)))
    except (ConfigError, ValueError):
        return text


def _difference(text: str, wanted: str, config: Config) -> str:
    """What a configuration says otherwise than the one that is wanted; empty when nothing that matters."""
    try:
        theirs = dict(flatten(tomllib.loads(text)))
    except ValueError:
        return "its `config.toml` is damaged"
    ours = dict(flatten(tomllib.loads(wanted)))
    keys = [key for key in dict.fromkeys([*theirs, *ours]) if theirs.get(key) != ours.get(key)]
    # A run that starts from an adapter has the adapter's tuning method, with everything that it says.
    if config.model.adapter is not None:
        keys = [key for key in keys if not key.startswith("tuning.")]
    shown = [
        f"`{key}` is {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} now" for key in keys[:_NUM_SHOWN]
    ]
    return "; ".join(shown) + (f"; and {len(keys) - _NUM_SHOWN} more" if len(keys) > _NUM_SHOWN else "")


def _several(paths: Sequence[Path]) -> str:
    first = f"{paths[0].parent.name}/{paths[0].name}"
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
