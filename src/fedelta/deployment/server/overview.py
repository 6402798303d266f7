"""What `fedelta server sites` shows: the registered sites, their connections, and what each does in a deployment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from shlex import quote

from fedelta.deployment.server.hub import Hub
from fedelta.deployment.server.keys import read_keys
from fedelta.deployment.server.submissions import Submissions
from fedelta.deployment.server.submit import is_served
from fedelta.record.status import read_status


@dataclass(frozen=True)
class Site:
    """A registered site.

    Args:
        name: of the site.
        connection: online, offline or never seen; unknown while no server runs.
        since: when it came online, or was last heard from.
        doing: what it does in the running deployment, or why it takes no part.
    """

    name: str
    connection: str
    since: str
    doing: str


@dataclass(frozen=True)
class Overview:
    """All sites of a server.

    Args:
        sites: in the order of their names.
        notes: what else the operator should know.
    """

    sites: Sequence[Site]
    notes: Sequence[str]


def overview(hub: Hub) -> Overview:
    """The sites of the server with this folder."""
    keys, is_running = read_keys(hub.sites), is_served(hub)
    known, refused = _presence(hub.presence) if is_running else ({}, {})
    doing = _doing(hub)
    sites = [
        Site(name, *known.get(name, ("unknown" if not is_running else "never seen", "")), doing.get(name, ""))
        for name in keys.registered
    ]
    notes = [f"{name} registers no site: {problem}" for name, problem in {**keys.problems, **refused}.items()]
    if not is_running:
        notes.append(f"no server runs on {str(hub.path)!r}; start it: fedelta server run {quote(str(hub.path))}")
    return Overview(sites, notes)


def local_time(text: str) -> str:
    """A time in ISO form as this machine's clock shows it, to the second; empty if there is none."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S") if text else ""


def _presence(path: Path) -> tuple[Mapping[str, tuple[str, str]], Mapping[str, str]]:
    """State and time of each site, and why files register none, as the running server last wrote them."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}, {}
    return {site["name"]: (site["state"], site["since"]) for site in record["sites"]}, record["problems"]


def _doing(hub: Hub) -> Mapping[str, str]:
    """What each site does in the deployment that runs."""
    for submission in Submissions(hub).all():
        if submission.state == "running" and (status := read_status(Path(submission.run))) is not None:
            return status.sites
    return {}
