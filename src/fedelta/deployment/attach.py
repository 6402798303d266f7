"""Follows a deployment until it is over, from another process than the one that runs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fedelta.deployment.hub import Hub
from fedelta.deployment.submissions import Submission, Submissions
from fedelta.deployment.submit import is_served
from fedelta.errors import FedeltaError, InputError

_SECONDS = 0.5


def follow(hub: Hub, name: str, on_look: Callable[[Submission], None], seconds: float = _SECONDS) -> Submission:
    """Waits until a deployment is over and returns its record.

    Args:
        hub: the server's folder.
        name: of the deployment.
        on_look: called each time with the record, before it is looked whether it is over.
        seconds: between two looks.

    Raises:
        InputError: there is no such deployment, or it failed for a reason that the user can mend.
        FedeltaError: it failed otherwise, or was stopped.
    """
    while True:
        submission = Submissions(hub).get(name)
        if submission is None:
            raise InputError(f"the server {str(hub.path)!r} has no deployment {name!r}.", hint=_known(hub))
        on_look(submission)
        if submission.state == "finished":
            return submission
        if submission.state == "stopped":
            raise FedeltaError(f"{name} was stopped.", hint=f"fedelta deploy {submission.run} --server {hub.path}")
        if submission.state == "failed":
            kind = InputError if submission.is_input_error else FedeltaError
            raise kind(submission.reason, hint=submission.hint)
        time.sleep(seconds)


def stop(hub: Hub, name: str, seconds: float = _SECONDS) -> None:
    """Stops a deployment and waits until it has stopped; if no server runs, it does not go on with the next one.

    Raises:
        InputError: it is over already.
    """
    submissions = Submissions(hub)
    submission = submissions.get(name)
    if submission is None or submission.is_over:
        raise InputError(f"{name} is {'unknown' if submission is None else submission.state}, not running.")
    submissions.ask_to_stop(name)
    while is_served(hub) and (now := submissions.get(name)) is not None and not now.is_over:
        time.sleep(seconds)


def find(path: Path, hub: Path | None = None) -> tuple[Hub, str]:
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
        return served, (active[0] if active else submissions[-1]).name
    run = path.resolve()
    served = Hub.open(run.parents[1] if hub is None else hub)
    submission = Submissions(served).get(run.name)
    if submission is None or Path(submission.run) != run:
        raise InputError(f"{str(path)!r} is no deployment of the server {str(served.path)!r}.", hint=_known(served))
    return served, run.name


def _known(hub: Hub) -> str:
    names = [submission.name for submission in Submissions(hub).all()]
    return f"it has {', '.join(names)}." if names else "it has none; `fedelta deploy` submits one."
