"""Runs deployments one after the other, each again until it has ended by itself.

A deployment is a run of Flower's only as long as that lives. Where the process that runs the rounds was killed, or the
whole server, a new one is submitted, which goes on from the checkpoint in the run directory.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fedelta.deployment.server.submissions import Submission, Submissions
from fedelta.record.status import Status, write_status
from fedelta.runtimes.flower.control import Control
from fedelta.runtimes.flower.programs import DEPLOYMENT

# A process that dies so often without finishing one round will not finish the next one either.
MAX_DEATHS = 5
_STOP_SECONDS = 10.0


@dataclass
class Queue:
    """Runs the submissions of a server.

    Args:
        submissions: their records.
        control: of the SuperLink.
        say: gets one line for each event.
        clock: monotonic seconds.
    """

    submissions: Submissions
    control: Control
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _deaths: int = field(default=0, init=False)
    _progress: int = field(default=-1, init=False)

    def take_over(self) -> None:
        """Submits again what ran when the server was ended.

        Raises:
            LinkError: the SuperLink is not up.
        """
        for submission in self.submissions.all():
            if submission.state == "running" and self.submissions.ending(submission) is None:
                self.say(f"{submission.name} goes on from its last checkpoint")
                self._stop(submission)
                self._start(submission)

    def step(self) -> None:
        """Starts the next deployment, or looks after the one that runs.

        Raises:
            LinkError: the SuperLink is not up.
        """
        unfinished = [submission for submission in self.submissions.all() if not submission.is_over]
        running = [submission for submission in unfinished if submission.state == "running"]
        for submission in unfinished:
            if self.submissions.is_asked_to_stop(submission.name):
                self._stop(submission)
                self._end(replace(submission, state="stopped"))
                return
        for submission in running:
            self._look_after(submission)
        if unfinished and not running:
            self._deaths, self._progress = 0, -1
            self._start(unfinished[0])

    def _look_after(self, submission: Submission) -> None:
        """Records how it ended, or runs it again if it died."""
        ending = self.submissions.ending(submission)
        if ending is not None:
            self._put(ending.of_submission(submission))
            return
        if not self._is_dead(submission):
            return
        progress = _num_bytes(Path(submission.run))
        self._deaths = 1 if progress != self._progress else self._deaths + 1
        self._progress = progress
        if self._deaths >= MAX_DEATHS:
            reason = f"its process ended {MAX_DEATHS} times without finishing a round."
            self._end(replace(submission, state="failed", reason=reason, hint="its log in `state/logs/` has more."))
            return
        self.say(f"the process of {submission.name} is gone; it goes on from its last checkpoint")
        self._stop(submission)
        self._start(submission)

    def _is_dead(self, submission: Submission) -> bool:
        if self.submissions.has_died(submission):
            # It may have ended properly since.
            return self.submissions.ending(submission) is None
        if self.submissions.process(submission) is not None or submission.number is None:
            return submission.number is None
        run = self.control.run(submission.number)
        return (run is None or run.is_over) and self.submissions.ending(submission) is None

    def _start(self, submission: Submission) -> None:
        number = self.control.start({DEPLOYMENT: submission.name})
        self._put(replace(submission, state="running", number=number))

    def _stop(self, submission: Submission) -> None:
        """Ends its run and its process."""
        if submission.number is None:
            return
        run = self.control.run(submission.number)
        if run is not None and not run.is_over:
            self.control.stop(submission.number)
        deadline = self.clock() + _STOP_SECONDS
        while (pid := self.submissions.process(submission)) is not None and self.clock() < deadline:
            time.sleep(0.1)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _end(self, submission: Submission) -> None:
        """Records an end of which the process that ran the rounds could not tell."""
        state: Literal["failed", "stopped"] = "stopped" if submission.state == "stopped" else "failed"
        with suppress(OSError):  # the run directory may be gone
            write_status(Path(submission.run), Status(state, submission.reason, submission.hint or ""))
        self._put(submission)

    def _put(self, submission: Submission) -> None:
        self.submissions.put(submission)
        reason = f": {submission.reason}" if submission.reason else ""
        self.say(f"deployment {submission.name} is {submission.state}{reason}")


def _num_bytes(run: Path) -> int:
    """Of the records of finished rounds."""
    from fedelta.record.rundir import ROUNDS  # torch comes with it

    try:
        return (run / ROUNDS).stat().st_size
    except FileNotFoundError:
        return 0
