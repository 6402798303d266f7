from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256

import pytest
import torch

from fedelta.errors import RunError
from fedelta.federation.records import Transfer
from fedelta.machine import machine_id
from fedelta.record.checkpoint import Checkpoint, encode, load
from fedelta.record.files import JsonLines, Mark, Seal
from fedelta.record.ledger import Ledger, opening_row
from fedelta.record.rundir import REQUIRED, RunDirectory, free_name, refuse_taken

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
    assert [item.name for item in (tmp_path / "runs").iterdir()] == ["demo"]


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
    with pytest.raises(RunError, match=r"notes.txt' is a file, expected a directory\."):
        refuse_taken(tmp_path / "notes.txt" / "runs" / "demo")
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


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = {
        f".demo.{machine_id()}-{gone.pid}.partial": ["config.toml", ".ledger.jsonl.partial"],  # its process is gone
        f".other.{machine_id()}-{gone.pid}.partial": ["environment.json"],
        f".mine.{machine_id()}-{gone.pid}.partial": ["thesis.tex"],  # holds what no run has
        f".demo.{machine_id()}-{os.getppid()}.partial": ["config.toml"],  # somebody is at it
        f".demo.0-{gone.pid}.partial": ["config.toml"],  # on another machine
        ".notes.partial": ["config.toml"],  # of another form
    }
    for name, files in left.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("")
    (tmp_path / f".file.{gone.pid}.partial").write_text("")
    RunDirectory.create(tmp_path / "demo", FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["demo", *[*left][2:], f".file.{gone.pid}.partial"]
    )


def test_what_a_killed_process_left_in_a_run_directory_is_removed(tmp_path):
    run = RunDirectory.create(tmp_path / "demo", FILES)
    before = sorted(path for path in run.path.rglob("*"))
    run.clients.mkdir()
    (run.path / ".adapter.partial").mkdir()
    for name in (".summary.json.partial", "checkpoint/.state.safetensors.partial", "checkpoint/clients/.0-1.partial"):
        (run.path / name).write_text("half")
    run.sweep()
    assert sorted(path for path in run.path.rglob("*")) == sorted([*before, run.clients])


def test_a_log_that_says_something_else_is_refused_and_nothing_is_cut(tmp_path):
    run = RunDirectory.create(tmp_path / "demo", FILES)
    run.ledger.write_bytes(OPENING.replace(b"10", b"11", 1) + b'{"round": 1}\n')
    before = run.ledger.read_bytes()
    with pytest.raises(RunError, match=r"ledger\.jsonl' is not as the run wrote it up to round 0") as caught:
        run.rewind(START)
    assert "restore it from a copy" in str(caught.value.hint)
    assert run.ledger.read_bytes() == before


def test_the_seal_of_a_file_that_grows_reads_only_what_is_new(tmp_path):
    path = tmp_path / "log"
    seal = Seal(path)
    assert seal.mark() == Mark(0, sha256(b"").hexdigest())
    for content in (b"one\n", b"two\n"):
        with path.open("ab") as file:
            file.write(content)
        assert seal.mark() == Mark(path.stat().st_size, sha256(path.read_bytes()).hexdigest())
    path.write_bytes(b"???\ntwo\nthree\n")  # what was read is not read again
    assert seal.mark().digest == sha256(b"one\ntwo\nthree\n").hexdigest()
