"""The queue over a SuperLink in memory: what it starts, and what it makes of runs that end or die."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.deployment.fakes import Clock, SuperLink, hub_at

from fedelta.deployment.server.hub import Hub
from fedelta.deployment.server.queue import MAX_DEATHS, Queue
from fedelta.deployment.server.submissions import Ending, Submission, Submissions
from fedelta.errors import InputError, LinkError, RoundError
from fedelta.record.status import read_status
from fedelta.runtimes.flower.control import Run


@dataclass
class Trial:
    """A queue, and what it said."""

    hub: Hub
    superlink: SuperLink = field(default_factory=SuperLink)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.submissions = Submissions(self.hub)
        self.queue = self.new_queue()

    def new_queue(self) -> Queue:
        """As a server that starts makes it."""
        return Queue(self.submissions, self.superlink, self.said.append, Clock(step=4))  # type: ignore[arg-type]

    def submit(self, name: str, asked: float = 1.0) -> Submission:
        run = self.hub.runs / name
        run.mkdir()
        submission = Submission(name, str(run), asked)
        self.submissions.submit(submission)
        return submission

    def state(self, name: str) -> str:
        submission = self.submissions.get(name)
        assert submission is not None
        return submission.state

    def finish_round(self, name: str) -> None:
        with (self.hub.runs / name / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write("{}\n")

    @contextmanager
    def process(self, name: str) -> Iterator[subprocess.Popen[str]]:
        """A process that runs the present run of a deployment."""
        submission = self.submissions.get(name)
        assert submission is not None
        code = (
            "import sys, pathlib\n"
            "from fedelta.deployment.server.hub import Hub\n"
            "from fedelta.deployment.server.submissions import Submissions\n"
            "with Submissions(Hub(pathlib.Path(sys.argv[1]))).running(sys.argv[2], int(sys.argv[3])):\n"
            "    print('runs', flush=True)\n"
            "    sys.stdin.read()\n"
        )
        command = [sys.executable, "-c", code, str(self.hub.path), name, str(submission.number)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
            assert process.stdout.readline() == "runs\n"
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(hub_at(tmp_path / "hub"))


def test_deployments_run_one_after_the_other_in_the_order_in_which_they_were_submitted(trial: Trial):
    trial.submit("second", asked=2.0)
    trial.submit("first", asked=1.0)
    for _ in range(3):
        trial.queue.step()
    assert (trial.superlink.started, trial.state("second")) == (["first"], "waiting")
    trial.submissions.end("first", Ending(1))
    for _ in range(2):
        trial.queue.step()
    assert trial.superlink.started == ["first", "second"]
    assert trial.state("first") == "finished"


def test_a_failure_is_recorded_with_its_hint_and_not_tried_again(trial: Trial):
    trial.submit("trial")
    trial.queue.step()
    trial.submissions.end("trial", Ending.of(1, InputError("no test data.", hint="give some.")))
    for _ in range(2):
        trial.queue.step()
    submission = trial.submissions.get("trial")
    assert submission is not None
    assert (submission.state, submission.reason, submission.hint) == ("failed", "no test data.", "give some.")
    assert submission.is_input_error
    assert trial.superlink.started == ["trial"]


@pytest.mark.parametrize(
    ("error", "reason", "is_input_error"),
    [
        (RoundError("diverged."), "diverged.", False),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero", False),
    ],
)
def test_an_ending_has_the_error_in_it(error: Exception, reason: str, is_input_error: bool):
    ending = Ending.of(1, error)
    assert (ending.reason, ending.is_input_error) == (reason, is_input_error)


def test_a_deployment_whose_process_was_killed_is_submitted_again(trial: Trial):
    trial.submit("trial")
    trial.queue.step()
    with trial.process("trial"):
        trial.queue.step()
        assert trial.superlink.started == ["trial"]
    trial.queue.step()
    assert trial.superlink.started == ["trial", "trial"]
    assert trial.superlink.stopped == [1]
    submission = trial.submissions.get("trial")
    assert submission is not None
    assert (submission.state, submission.number) == ("running", 2)


def test_a_run_that_flower_ended_before_its_process_began_is_submitted_again(trial: Trial):
    trial.submit("trial")
    trial.queue.step()
    trial.superlink.runs[1] = Run("finished", "no heartbeat")
    trial.queue.step()
    assert trial.superlink.started == ["trial", "trial"]


def test_the_ending_of_an_earlier_run_is_not_that_of_the_present_one(trial: Trial):
    trial.submit("trial")
    trial.queue.step()
    trial.submissions.end("trial", Ending(99, "an earlier failure"))
    trial.queue.step()
    assert trial.state("trial") == "running"


def test_a_process_that_always_dies_is_given_up_and_the_log_is_named(trial: Trial):
    trial.submit("trial")
    for _ in range(MAX_DEATHS + 1):
        trial.queue.step()
        trial.superlink.runs = dict.fromkeys(trial.superlink.runs, Run("finished"))
    submission = trial.submissions.get("trial")
    assert submission is not None
    assert (submission.state, len(trial.superlink.started)) == ("failed", MAX_DEATHS)
    assert submission.reason == f"its process ended {MAX_DEATHS} times without finishing a round."
    status = read_status(Path(submission.run))
    assert status is not None
    assert (status.state, status.text) == ("failed", submission.reason)


def test_a_process_that_gets_on_between_its_deaths_is_not_given_up(trial: Trial):
    trial.submit("trial")
    for _ in range(3 * MAX_DEATHS):
        trial.queue.step()
        trial.finish_round("trial")
        trial.superlink.runs = dict.fromkeys(trial.superlink.runs, Run("finished"))
    assert trial.state("trial") == "running"


def test_a_server_that_starts_again_goes_on_with_what_ran(trial: Trial):
    trial.submit("trial")
    trial.queue.step()
    trial.new_queue().take_over()
    assert trial.superlink.stopped == [1]
    assert trial.superlink.started == ["trial", "trial"]


def test_a_server_that_starts_again_leaves_alone_what_had_ended_meanwhile(trial: Trial):
    trial.submit("trial")
    trial.queue.step()
    trial.submissions.end("trial", Ending(1))
    queue = trial.new_queue()
    queue.take_over()
    queue.step()
    assert (trial.state("trial"), trial.superlink.started) == ("finished", ["trial"])


def test_a_deployment_that_is_stopped_ends_its_process_and_is_not_started_again(trial: Trial):
    trial.submit("trial")
    trial.queue.step()
    with trial.process("trial") as process:
        trial.submissions.ask_to_stop("trial")
        trial.queue.step()
        assert process.wait(10) == -9  # it does not notice that Flower has ended its run
    trial.queue.step()
    assert (trial.state("trial"), trial.superlink.stopped, len(trial.superlink.started)) == ("stopped", [1], 1)
    status = read_status(trial.hub.runs / "trial")
    assert status is not None
    assert status.state == "stopped"


def test_a_stopped_deployment_can_be_submitted_again(trial: Trial):
    submission = trial.submit("trial")
    trial.submissions.ask_to_stop("trial")
    trial.queue.step()
    trial.submissions.submit(submission)
    trial.queue.step()
    assert (trial.state("trial"), trial.superlink.started) == ("running", ["trial"])


def test_while_the_superlink_is_away_a_deployment_waits(trial: Trial):
    trial.submit("trial")
    trial.superlink.is_up = False
    with pytest.raises(LinkError, match="cannot be reached"):
        trial.queue.step()
    assert trial.state("trial") == "waiting"


def test_a_record_that_cannot_be_read_is_named(trial: Trial):
    trial.submit("trial")
    (trial.hub.deployments / "trial" / "record.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"record.json' of a deployment cannot be read"):
        trial.submissions.all()
