"""What to say where a run was expected: which runs are near."""

from __future__ import annotations

import itertools
from difflib import get_close_matches
from pathlib import Path

CONFIG, LEDGER = "config.toml", "ledger.jsonl"  # every run has them, and no comparison has a ledger
RUNS = Path("runs")
_MOST_SEEN, _NUM_SHOWN = 1000, 3


def runs_in(folder: Path) -> list[Path]:
    """The run directories in a folder, the newest first; empty if it cannot be read."""
    try:
        places = [place for place in itertools.islice(folder.iterdir(), _MOST_SEEN) if is_run(place)]
        return sorted(places, key=lambda place: (place / CONFIG).stat().st_mtime, reverse=True)
    except OSError:
        return []


def is_run(place: Path) -> bool:
    """Whether a directory looks like one of a run."""
    return (place / CONFIG).is_file() and (place / LEDGER).is_file()


def advice(path: Path) -> str:
    """What may have been meant by `path`, which is no run directory."""
    if path.exists() and is_run(path.parent):
        return f"give the directory of the run: {str(path.parent)!r}."
    if path.is_file() and path.suffix.lower() == ".toml":
        return f"a configuration becomes a run by `fedelta run {path}`, which prints the directory."
    if path.is_dir() and (inside := runs_in(path)):
        return f"it holds runs: {_listed(inside)}."
    near = [place for folder in dict.fromkeys((path.parent, RUNS)) for place in runs_in(folder)]
    by_name = {place.name: place for place in reversed(near)}
    if close := get_close_matches(path.name, by_name, n=_NUM_SHOWN):
        return f"did you mean {' or '.join(repr(str(by_name[name])) for name in close)}?"
    known = f" Runs near here are {_listed(near)}." if near else ""
    return f"give the directory that `fedelta run` printed, the one that holds `{CONFIG}`.{known}"


def _listed(places: list[Path]) -> str:
    more = f" and {len(places) - _NUM_SHOWN} more" if len(places) > _NUM_SHOWN else ""
    return ", ".join(repr(str(place)) for place in places[:_NUM_SHOWN]) + more
