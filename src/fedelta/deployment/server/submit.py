"""Submits a recipe to the server on this machine: a run directory with the configuration, and a record."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable
from pathlib import Path

from fedelta.config import load_config
from fedelta.deployment.run.conflicts import refuse_conflicts
from fedelta.deployment.server.hub import Hub
from fedelta.deployment.server.submissions import Submission, Submissions
from fedelta.errors import InputError, RunError
from fedelta.record.files import exclusive
from fedelta.record.rundir import CONFIG, free_name, refuse_taken
from fedelta.record.status import Status, write_status

_RUNTIME = "runtime.name=flower"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def submit(hub: Hub, recipe: Path, overrides: Iterable[str] = (), out: Path | None = None) -> Submission:
    """Submits a recipe, or what a stopped or failed deployment has left of it.

    Args:
        hub: the folder of a running server.
        recipe: a TOML file, or the run directory of an earlier deployment, to go on with it.
        overrides: `section.key=value`.
        out: the new run directory; by default `runs/<name of the recipe>` in the server's folder.

    Raises:
        InputError: no server runs on the folder, the configuration cannot be deployed, or `out` is taken.
    """
    refuse_no_server(hub)
    if recipe.is_dir():
        return _again(hub, recipe, overrides, out)
    config = load_config(recipe, [*overrides, _RUNTIME])
    refuse_conflicts(config)
    path = (free_name(hub.runs, recipe.stem) if out is None else out).resolve()
    other = Submissions(hub).get(path.name)
    if other is not None and Path(other.run) == path and path.exists():
        again = shlex.join(["fedelta", "deploy", str(path), "--server", str(hub.path)])
        raise RunError(
            f"{str(path)!r} is a deployment already, which is {other.state}.",
            hint=f"give another --out; or go on with that one, if it was stopped or failed: {again}",
        )
    refuse_taken(path)
    if _NAME.fullmatch(path.name) is None:
        raise InputError(
            f"a deployment cannot be called {path.name!r}; expected letters, digits, `.`, `_` and `-`.",
            hint="give another name with --out.",
        )
    if other is not None and Path(other.run) != path:
        raise InputError(
            f"the server has a deployment {path.name!r} already, in {other.run!r}.",
            hint="give another name with --out.",
        )
    path.mkdir(parents=True, exist_ok=True)
    (path / CONFIG).write_text(config.to_toml(), encoding="utf-8")
    return _submitted(hub, Submission(path.name, str(path), time.time()))


def refuse_no_server(hub: Hub) -> None:
    """Refuses if no server runs on this folder.

    Raises:
        InputError: none does.
    """
    if not is_served(hub):
        raise InputError(
            f"no server runs on {str(hub.path)!r}.", hint=f"fedelta server run {shlex.quote(str(hub.path))}"
        )


def is_served(hub: Hub) -> bool:
    """Whether a server runs on this folder."""
    if not hub.lock.is_file():
        return False
    try:
        with exclusive(hub.lock, ""):
            return False
    except RunError:
        return True


def _again(hub: Hub, directory: Path, overrides: Iterable[str], out: Path | None) -> Submission:
    """Submits an earlier deployment once more; it goes on from its checkpoint."""
    submission = Submissions(hub).get(directory.resolve().name)
    if submission is None or Path(submission.run) != directory.resolve():
        raise InputError(f"{str(directory)!r} is no deployment of the server {str(hub.path)!r}.")
    if list(overrides) or out is not None:
        raise InputError(
            f"{str(directory)!r} goes on as it began; --set and --out do not go with it.",
            hint="for more rounds deploy the recipe anew, from the model of this one: "
            f"--set model.adapter={shlex.quote(str(directory / 'adapter'))}",
        )
    if not submission.is_over:
        raise InputError(
            f"{submission.name} is {submission.state}.", hint=f"fedelta attach {shlex.quote(str(directory))}"
        )
    return _submitted(hub, submission)


def _submitted(hub: Hub, submission: Submission) -> Submission:
    write_status(Path(submission.run), Status("submitted"))
    Submissions(hub).submit(submission)
    return submission
