from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.report.pages import text_of
from tests.report.synthetic import Shape, make_run

from fedelta.errors import RunError
from fedelta.record.rundir import RunDirectory
from fedelta.record.status import STATUS, Status, read_status, write_status


def test_a_status_is_read_as_it_was_written(tmp_path: Path):
    status = Status("waiting", "waiting for sites", since="2026-11-28T13:00:00+00:00", sites={"kiel": "missing"})
    write_status(tmp_path, status)
    assert read_status(tmp_path) == status
    assert not status.is_over
    assert Status("failed").is_over


def test_a_status_without_a_time_gets_the_present_one(tmp_path: Path):
    write_status(tmp_path, Status("running"))
    status = read_status(tmp_path)
    assert status is not None
    assert status.since.endswith("+00:00")


def test_a_run_that_was_not_deployed_has_no_status(tmp_path: Path):
    assert read_status(tmp_path) is None


@pytest.mark.parametrize(
    "content", [{"state": "asleep"}, {"state": "running", "sites": 3}, {"state": "failed", "text": 1}]
)
def test_another_content_is_refused(tmp_path: Path, content: dict[str, object]):
    (tmp_path / STATUS).write_text(json.dumps(content))
    with pytest.raises(RunError, match="does not hold the status of a run"):
        read_status(tmp_path)


def test_the_page_of_an_unfinished_run_says_why_it_failed(tmp_path: Path):
    run = make_run(tmp_path / "run", Shape(num_rounds=30, num_finished=2)).path
    assert "Unfinished: 2 of 30 rounds. 8 of" in text_of(run)
    write_status(run, Status("failed", "round 3: the loss is not finite."))
    assert "Unfinished: 2 of 30 rounds. Failed: round 3: the loss is not finite. 8 of" in text_of(run)


def test_a_deployment_that_waits_for_its_first_round_says_so(tmp_path: Path):
    write_status(tmp_path, Status("waiting", "waiting for sites: 1 of 2"))
    with pytest.raises(RunError, match=r"has no rounds yet \(waiting: waiting for sites: 1 of 2\)"):
        RunDirectory.open(tmp_path)
