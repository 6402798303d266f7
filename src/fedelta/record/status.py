"""`status.json`: what a deployed run is doing now, for those who follow it; replaced atomically whenever it changes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from fedelta.durable import write_atomic
from fedelta.errors import RunError
from fedelta.record.files import read_json, to_json

STATUS = "status.json"
State = Literal["submitted", "waiting", "running", "finished", "failed", "stopped"]
ENDS: tuple[State, ...] = ("finished", "failed", "stopped")


@dataclass(frozen=True)
class Status:
    """What a run is doing.

    Args:
        state: submitted: not begun; waiting: for sites; running: rounds; finished, failed or stopped: over.
        text: for people: who is waited for, or why it failed; empty if there is nothing to say.
        hint: what to do about a failure; empty if there is nothing to say.
        since: when this began, ISO 8601 in UTC.
        sites: name of each site to what it is doing.
    """

    state: State
    text: str = ""
    hint: str = ""
    since: str = ""
    sites: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.state in ENDS


def write_status(run: Path, status: Status) -> None:
    """Writes the status of the run in the directory `run`, with the present time."""
    now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
    content = asdict(status) | {"since": status.since or now, "sites": dict(status.sites)}
    write_atomic(run / STATUS, to_json(content, indent=2) + "\n")


def read_status(run: Path) -> Status | None:
    """The status of the run in the directory `run`; None if it was not deployed.

    Raises:
        RunError: the file has other content.
    """
    path = run / STATUS
    if not path.exists():
        return None
    content = read_json(path)
    texts = {key: content.get(key, "") for key in ("text", "hint", "since")}
    sites = content.get("sites", {})
    if (
        content.get("state") not in get_args(State)
        or not all(isinstance(text, str) for text in texts.values())
        or not isinstance(sites, dict)
    ):
        raise RunError(f"{str(path)!r} does not hold the status of a run.", hint="remove it; a run writes it anew.")
    return Status(content["state"], sites={name: str(doing) for name, doing in sites.items()}, **texts)
