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

from fedelta.deployment.deployments import Deployment, Deployments
from fedelta.record.rundir import ROUNDS
from fedelta.runtimes.flower.control import Control
from fedelta.runtimes.flower.server_app import DEPLOYMENT

# A process that dies so often without finishing one round will not finish the next one either.
MAX_DEATHS = 5
_STOP_SECONDS = 10.0


@dataclass
class Queue:
    """Runs the deployments of a server.

    Args:
        deployments: their records.
        control: of the SuperLink.
        say: gets one line for each event.
        clock: monotonic seconds.
    """

    deployments: Deployments
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
        for deployment in self.deployments.all():
            if deployment.state == "running" and self.deployments.ending(deployment) is None:
                self.say(f"{deployment.name} goes on from its last checkpoint")
                self._stop(deployment)
                self._start(deployment)

    def step(self) -> None:
        """Starts the next deployment, or looks after the one that runs.

        Raises:
            LinkError: the SuperLink is not up.
        """
        unfinished = [deployment for deployment in self.deployments.all() if not deployment.is_over]
        running = [deployment for deployment in unfinished if deployment.state == "running"]
        for deployment in unfinished:
            if self.deployments.is_asked_to_stop(deployment.name):
                self._stop(deployment)
                self._put(replace(deployment, state="stopped"))
                return
        for deployment in running:
            self._look_after(deployment)
        if unfinished and not running:
            self._deaths, self._progress = 0, -1
            self._start(unfinished[0])

    def _look_after(self, deployment: Deployment) -> None:
        """Records how it ended, or runs it again if it died."""
        ending = self.deployments.ending(deployment)
        if ending is not None:
            state = "failed" if ending.reason else "finished"
            end = (ending.reason, ending.hint, ending.is_input_error)
            self._put(replace(deployment, state=state, reason=end[0], hint=end[1], is_input_error=end[2]))
            return
        if not self._is_dead(deployment):
            return
        progress = _num_bytes(Path(deployment.run) / ROUNDS)
        self._deaths = 1 if progress != self._progress else self._deaths + 1
        self._progress = progress
        if self._deaths >= MAX_DEATHS:
            reason = f"its process ended {MAX_DEATHS} times without finishing a round."
            self._put(replace(deployment, state="failed", reason=reason, hint="the log `superexec.log` has more."))
            return
        self.say(f"the process of {deployment.name} is gone; it goes on from its last checkpoint")
        self._stop(deployment)
        self._start(deployment)

    def _is_dead(self, deployment: Deployment) -> bool:
        if self.deployments.has_died(deployment):
            # It may have ended properly since.
            return self.deployments.ending(deployment) is None
        if self.deployments.process(deployment) is not None or deployment.number is None:
            return deployment.number is None
        run = self.control.run(deployment.number)
        return (run is None or run.is_over) and self.deployments.ending(deployment) is None

    def _start(self, deployment: Deployment) -> None:
        number = self.control.start({DEPLOYMENT: deployment.name})
        self._put(replace(deployment, state="running", number=number))

    def _stop(self, deployment: Deployment) -> None:
        """Ends its run and its process."""
        if deployment.number is None:
            return
        run = self.control.run(deployment.number)
        if run is not None and not run.is_over:
            self.control.stop(deployment.number)
        deadline = self.clock() + _STOP_SECONDS
        while (pid := self.deployments.process(deployment)) is not None and self.clock() < deadline:
            time.sleep(0.1)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _put(self, deployment: Deployment) -> None:
        self.deployments.put(deployment)
        reason = f": {deployment.reason}" if deployment.reason else ""
        self.say(f"deployment {deployment.name} is {deployment.state}{reason}")


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
