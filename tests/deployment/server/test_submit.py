from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.deployment.fakes import hub_at

from fedelta.config import load_config
from fedelta.deployment.server import attach as attaching
from fedelta.deployment.server import submit as submitting
from fedelta.deployment.server.attach import find, follow, stop
from fedelta.deployment.server.hub import Hub
from fedelta.deployment.server.submissions import Ending, Submission, Submissions
from fedelta.deployment.server.submit import is_served, submit
from fedelta.errors import ConfigError, FedeltaError, InputError, RunError
from fedelta.record.files import exclusive
from fedelta.record.status import read_status


@dataclass
class Switch:
    """Whether a server seems to run."""

    is_on: bool = True


@pytest.fixture
def is_running(monkeypatch: pytest.MonkeyPatch) -> Switch:
    switch = Switch()
    for module in (submitting, attaching):
        monkeypatch.setattr(module, "is_served", lambda hub: switch.is_on)
    return switch


@pytest.fixture
def hub(tmp_path: Path, is_running: Switch) -> Hub:
    """A server's folder, on which a server seems to run."""
    return hub_at(tmp_path / "hub")


@pytest.fixture
def recipe(repository: Path) -> Path:
    return repository / "recipes" / "demo.toml"


def test_a_recipe_becomes_a_run_directory_for_sites_and_a_record(hub: Hub, recipe: Path):
    submission = submit(hub, recipe, ["strategy.num_rounds=3"])
    run = Path(submission.run)
    assert run == (hub.runs / "demo").resolve()
    config = load_config(run / "config.toml")
    assert (config.runtime.name, config.strategy.num_rounds) == ("flower", 3)  # type: ignore[attr-defined]
    status = read_status(run)
    assert status is not None
    assert status.state == "submitted"
    assert [submission.name for submission in Submissions(hub).all()] == ["demo"]


def test_the_same_recipe_again_is_another_deployment(hub: Hub, recipe: Path):
    assert [submit(hub, recipe).name for _ in range(2)] == ["demo", "demo-2"]


def test_a_run_directory_may_be_elsewhere_but_not_where_something_is(hub: Hub, recipe: Path, tmp_path: Path):
    assert submit(hub, recipe, out=tmp_path / "elsewhere").run == str(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="elsewhere' is a deployment already, which is waiting") as caught:
        submit(hub, recipe, out=tmp_path / "elsewhere")
    assert f"fedelta deploy {tmp_path / 'elsewhere'} --server" in str(caught.value.hint)


def test_two_deployments_of_one_server_have_different_names(hub: Hub, recipe: Path, tmp_path: Path):
    submit(hub, recipe)
    with pytest.raises(InputError, match="has a deployment 'demo' already"):
        submit(hub, recipe, out=tmp_path / "demo")


def test_a_server_whose_folder_was_moved_knows_its_deployments(hub: Hub, recipe: Path, tmp_path: Path):
    submit(hub, recipe)
    outside = submit(hub, recipe, out=tmp_path / "outside")
    moved = Hub(hub.path.rename(tmp_path / "moved"))
    assert Submissions(moved).all()[0].run == str(moved.runs / "demo")
    assert Submissions(moved).get("outside") == outside
    assert attaching.find(moved.runs / "demo")[1].name == "demo"


def test_a_name_that_is_no_name_is_refused(hub: Hub, recipe: Path, tmp_path: Path):
    with pytest.raises(InputError, match="cannot be called 'a b'"):
        submit(hub, recipe, out=tmp_path / "a b")
    assert not (tmp_path / "a b").exists()


def test_a_recipe_with_simulated_failures_is_refused(hub: Hub, recipe: Path):
    with pytest.raises(ConfigError, match="the failures are real"):
        submit(hub, recipe, ["stability.dropout_fraction=0.1"])
    assert list(hub.runs.iterdir()) == []


def test_without_a_running_server_nothing_is_submitted(hub: Hub, recipe: Path, is_running: Switch):
    is_running.is_on = False
    with pytest.raises(InputError, match="no server runs on") as caught:
        submit(hub, recipe)
    assert caught.value.hint == f"fedelta server run {hub.path}"


def test_a_server_is_running_while_it_holds_the_lock(tmp_path: Path):
    hub = hub_at(tmp_path / "hub")
    assert not is_served(hub)
    with exclusive(hub.lock, ""):
        assert is_served(hub)


def test_a_deployment_that_is_over_goes_on_by_its_run_directory(hub: Hub, recipe: Path):
    submission = submit(hub, recipe)
    with pytest.raises(InputError, match="demo is waiting") as caught:
        submit(hub, Path(submission.run))
    assert "fedelta attach" in str(caught.value.hint)
    Submissions(hub).put(Ending(1, "diverged.").of_submission(submission))
    again = submit(hub, Path(submission.run))
    assert again.run == submission.run
    assert _state(hub, "demo") == "waiting"


def test_a_deployment_goes_on_with_its_own_settings(hub: Hub, recipe: Path):
    submission = submit(hub, recipe)
    with pytest.raises(InputError, match="--set and --out do not go with it"):
        submit(hub, Path(submission.run), ["seed=3"])


def test_a_directory_that_is_no_deployment_is_refused(hub: Hub, tmp_path: Path):
    with pytest.raises(InputError, match="is no deployment of the server"):
        submit(hub, tmp_path)


def test_following_ends_when_the_deployment_has_finished(hub: Hub, recipe: Path):
    submission, num_looks = submit(hub, recipe), 0

    def look() -> None:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 3:
            Submissions(hub).put(Ending(1).of_submission(submission))

    follow(hub, "demo", look, print, seconds=0)
    assert num_looks == 4


def test_who_follows_is_told_what_the_deployment_waits_for_once(hub: Hub, recipe: Path, is_running: Switch):
    first, second, notes = submit(hub, recipe), submit(hub, recipe), []
    Submissions(hub).put(replace(first, state="running"))
    looks = iter([None, None, lambda: setattr(is_running, "is_on", False), None, _ended(hub, second), None])

    def look() -> None:
        if (change := next(looks)) is not None:
            change()

    follow(hub, "demo-2", look, notes.append, seconds=0)
    gone = f"the server does not run; demo-2 goes on with: fedelta server run {hub.path}"
    assert notes == ["demo-2 waits for demo, which runs", gone]


@pytest.mark.parametrize(("is_input_error", "kind"), [(True, InputError), (False, FedeltaError)])
def test_a_failure_is_raised_where_it_is_followed(hub: Hub, recipe: Path, is_input_error: bool, kind: type[Exception]):
    Submissions(hub).put(Ending(1, "too few sites.", "wait.", is_input_error).of_submission(submit(hub, recipe)))
    with pytest.raises(FedeltaError, match="too few sites") as caught:
        follow(hub, "demo", lambda: None, print)
    assert (type(caught.value), caught.value.hint) == (kind, "wait.")


def test_a_stopped_deployment_says_how_to_go_on(hub: Hub, recipe: Path, is_running: Switch):
    submission, is_running.is_on = submit(hub, recipe), False
    stop(hub, "demo")
    assert Submissions(hub).is_asked_to_stop("demo")
    Submissions(hub).put(replace(submission, state="stopped"))
    with pytest.raises(FedeltaError, match="demo was stopped") as caught:
        follow(hub, "demo", lambda: None, print)
    assert caught.value.hint == f"to go on with it: fedelta deploy {submission.run} --server {hub.path}"
    with pytest.raises(InputError, match="demo is stopped, not running"):
        stop(hub, "demo")


def test_an_unknown_deployment_is_told_with_those_that_there_are(hub: Hub, recipe: Path):
    submit(hub, recipe)
    with pytest.raises(InputError, match="has no deployment 'other'") as caught:
        follow(hub, "other", lambda: None, print)
    assert caught.value.hint == "it has demo."


@pytest.mark.parametrize("path", [lambda hub: hub.path, lambda hub: hub.runs / "demo-2"])
def test_a_deployment_is_found_by_its_run_directory_or_as_the_one_that_runs(
    hub: Hub, recipe: Path, path: Callable[[Hub], Path]
):
    first, _ = submit(hub, recipe), submit(hub, recipe)
    Submissions(hub).put(Ending(1).of_submission(first))
    served, submission = find(path(hub))
    assert (served.path.resolve(), submission.name) == (hub.path.resolve(), "demo-2")


def test_a_server_without_deployments_has_none_to_attach_to(hub: Hub):
    with pytest.raises(InputError, match="has no deployments"):
        find(hub.path)


def _ended(hub: Hub, submission: Submission) -> Callable[[], None]:
    return lambda: Submissions(hub).put(Ending(1).of_submission(submission))


def _state(hub: Hub, name: str) -> str:
    submission = Submissions(hub).get(name)
    assert submission is not None
    return submission.state
