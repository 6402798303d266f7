"""Follows a deployment until it is over, from another process than the one that runs it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path

from fedelta.deployment.server.hub import Hub
from fedelta.deployment.server.submissions import Submission, Submissions
from fedelta.deployment.server.submit import is_served
from fedelta.errors import FedeltaError, InputError

_SECONDS = 0.5


def follow(
    hub: Hub,
    name: str,
    look: Callable[[], None],
    say: Callable[[str], None],
    *,
    seconds: float = _SECONDS,
) -> None:
    """Waits until a deployment has finished.

    Args:
        hub: the server's folder.
        name: of the deployment.
        look: called each time before it is looked whether it is over.
        say: gets what else is to be known, each text once.
        seconds: between two looks.

    Raises:
        InputError: there is no such deployment, or it failed for a reason that the user can mend.
        FedeltaError: it failed otherwise, or was stopped.
    """
    said = ""
    while True:
        submission = get(hub, name)
        look()
        if submission.is_over:
            _refuse_failed(hub, submission)
            return
        note = _note(hub, submission)
        if note and note != said:
            say(note)
        said = note
        time.sleep(seconds)


def get(hub: Hub, name: str) -> Submission:
    """The record of a deployment.

    Raises:
        InputError: there is none of this name.
    """
    submission = Submissions(hub).get(name)
    if submission is None:
        raise InputError(f"the server {str(hub.path)!r} has no deployment {name!r}.", hint=_known(hub))
    return submission


def stop(hub: Hub, name: str, seconds: float = _SECONDS) -> None:
    """Stops a deployment and waits until it has stopped; if no server runs, it does not go on with the next one.

    Raises:
        InputError: it is over already.
    """
    submission = get(hub, name)
    if submission.is_over:
        raise InputError(f"{name} is {submission.state}, not running.")
    Submissions(hub).ask_to_stop(name)
    while is_served(hub) and not get(hub, name).is_over:
        time.sleep(seconds)


def find(path: Path, hub: Path | None = None) -> tuple[Hub, Submission]:
    """The server's folder and the deployment that `path` means: a run directory, or the folder for its last one.

    Raises:
        InputError: it is neither.
    """
    if Hub(path).settings_file.is_file():
        served = Hub.open(path)
        submissions = Submissions(served).all()
        if not submissions:
            raise InputError(f"the server {str(path)!r} has no deployments.", hint="`fedelta deploy` submits one.")
        active = [submission for submission in submissions if not submission.is_over]
        return served, (active or submissions[-1:])[0]
    run = path.resolve()
    served = Hub.open(run.parents[1] if hub is None else hub)
    submission = Submissions(served).get(run.name)
    if submission is None or Path(submission.run) != run:
        raise InputError(f"{str(path)!r} is no deployment of the server {str(served.path)!r}.", hint=_known(served))
    return served, submission


def _refuse_failed(hub: Hub, submission: Submission) -> None:
    again = shlex.join(["fedelta", "deploy", submission.run, "--server", str(hub.path)])
    if submission.state == "stopped":
        raise FedeltaError(f"{submission.name} was stopped.", hint=f"to go on with it: {again}")
    if submission.state == "failed":
        kind = InputError if submission.is_input_error else FedeltaError
        raise kind(submission.reason, hint=submission.hint)


def _note(hub: Hub, submission: Submission) -> str:
    """What the run directory does not tell."""
    if not is_served(hub):
        return (
            f"the server does not run; {submission.name} goes on with: fedelta server run {shlex.quote(str(hub.path))}"
        )
    others = [other.name for other in Submissions(hub).all() if other.state == "running"]
    return f"{submission.name} waits for {others[0]}, which runs" if submission.state == "waiting" and others else ""


def _known(hub: Hub) -> str:
    names = [submission.name for submission in Submissions(hub).all()]
    return f"it has {', '.join(names)}." if names else "it has none; `fedelta deploy` submits one."
