from __future__ import annotations

import os
from hashlib import sha256

import pytest
import torch

from fedelta.errors import RunError
from fedelta.federation.records import Transfer
from fedelta.results.checkpoint import Checkpoint, encode, load
from fedelta.results.files import JsonLines, Mark
from fedelta.results.ledger import Ledger, opening_row
from fedelta.results.rundir import REQUIRED, RunDirectory, free_name, refuse_taken

OPENING = opening_row(backbone_bytes=10)
LOGS = {
    name: Mark(len(text), sha256(text).hexdigest()) for name, text in (("rounds.jsonl", b""), ("ledger.jsonl", OPENING))
}
START = Checkpoint(0, {"w": torch.zeros(2)}, {}, {}, "", LOGS)
FILES = {
    "config.toml": "seed = 7\n",
    "environment.json": "{}",
    "citations.bib": "",
    "ledger.jsonl": OPENING,
    "checkpoint/state.safetensors": encode(START),
}


def test_a_new_run_directory_can_be_resumed_at_once(tmp_path):
    run = RunDirectory.create(tmp_path / "runs" / "demo", FILES)
    again = RunDirectory.open(tmp_path / "runs" / "demo")
    assert again == run
    checkpoint = load(again.checkpoint)
    again.rewind(checkpoint)
    assert checkpoint.round == 0
    assert again.rounds.read() == again.timings.read() == []
    assert Ledger.read(again.ledger).backbone_bytes == 10
    assert [each.name for each in (tmp_path / "runs").iterdir()] == ["demo"]


def test_rewinding_forgets_what_came_after_the_checkpoint(tmp_path):
    run = RunDirectory.create(tmp_path / "demo", FILES)
    Ledger.read(run.ledger).append([Transfer(1, 0, "up", 5, {"a": 4})])
    run.rounds.append([{"round": 1}])
    run.timings.append([{"round": 1}])
    run.rewind(START)
    assert run.ledger.read_bytes() == OPENING
    assert run.rounds.num_bytes == run.timings.num_bytes == 0


def test_an_empty_directory_is_used(tmp_path):
    (tmp_path / "demo").mkdir()
    RunDirectory.create(tmp_path / "demo", FILES)
    RunDirectory.open(tmp_path / "demo")


def test_an_existing_run_is_refused_and_untouched(tmp_path):
    run = RunDirectory.create(tmp_path / "demo", FILES)
    with pytest.raises(RunError, match=r"already holds a run") as error:
        RunDirectory.create(tmp_path / "demo", {**FILES, "config.toml": "seed = 8\n"})
    assert f"fedelta resume {tmp_path / 'demo'}" in str(error.value)
    assert run.config.read_text() == "seed = 7\n"


def test_a_directory_with_other_content_and_a_file_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        refuse_taken(tmp_path)
    with pytest.raises(RunError, match="is a file"):
        refuse_taken(tmp_path / "notes.txt")
    refuse_taken(tmp_path / "free")


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("attempts", [0, 1, 4])
def test_a_failed_creation_leaves_nothing(tmp_path, monkeypatch, attempts, failure):
    replace, calls = os.replace, []

    def fail_later(source: object, target: object) -> None:
        calls.append(source)
        if len(calls) > attempts:
            raise failure
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_later)
    with pytest.raises(type(failure)):
        RunDirectory.create(tmp_path / "demo", FILES)
    assert list(tmp_path.iterdir()) == []


def test_creation_needs_all_that_resuming_needs(tmp_path):
    with pytest.raises(ValueError, match=r"citations\.bib"):
        RunDirectory.create(tmp_path / "demo", {name: b"" for name in REQUIRED if name != "citations.bib"})
    assert list(tmp_path.iterdir()) == []


def test_opening_names_all_that_is_missing(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        RunDirectory.open(tmp_path / "absent")
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(RunError, match="is not a directory"):
        RunDirectory.open(tmp_path / "config.toml")
    with pytest.raises(RunError, match=r"lacks environment\.json, citations\.bib, ledger\.jsonl, checkpoint/"):
        RunDirectory.open(tmp_path)


def test_a_summary_marks_the_run_as_finished(tmp_path):
    run = RunDirectory.create(tmp_path / "demo", FILES)
    assert not run.summary.exists()
    run.write_summary({"rounds": 3, "final_accuracy": float("nan")})
    assert '"rounds": 3' in run.summary.read_text()
    assert '"final_accuracy": null' in run.summary.read_text()


def test_free_names_count_from_two(tmp_path):
    assert free_name(tmp_path / "runs", "demo") == tmp_path / "runs" / "demo"
    for expected in ("demo", "demo-2", "demo-3"):
        path = free_name(tmp_path, "demo")
        assert path.name == expected
        path.mkdir()


def test_a_log_that_is_shorter_than_the_checkpoint_says_is_refused(tmp_path):
    run = RunDirectory.create(tmp_path / "demo", FILES)
    JsonLines(run.ledger).truncate(0)
    with pytest.raises(RunError, match=r"ledger\.jsonl.* has 0 bytes"):
        run.rewind(START)
