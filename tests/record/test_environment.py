from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

from fedelta.record.environment import environment, git_commit, peak_memory_bytes


def test_the_environment_names_what_is_needed_to_repeat_a_run():
    result = environment()
    assert result["python"] == platform.python_version()
    assert result["packages"]["torch"]
    assert result["packages"]["transformers"]
    assert result["packages"]["dp-accounting"]
    assert result["cpu_count"] >= 1
    assert result["num_threads"] >= 1
    assert json.loads(json.dumps(result)) == result


def test_the_commit_of_a_work_tree_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], check=True)
    commit = git_commit()
    assert commit is not None
    assert len(commit) == 40


def test_a_machine_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_peak_memory_is_that_of_this_process():
    # A Python process with torch takes more than 50 MiB and less than a TiB: catches a wrong unit.
    assert 50 * 2**20 < peak_memory_bytes() < 2**40


def test_peak_memory_of_a_process_leaves_out_that_of_the_process_that_started_it():
    large = bytearray(400 * 2**20)
    code = "from fedelta.record.environment import peak_memory_bytes; print(peak_memory_bytes())"
    peak = int(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert 5 * 2**20 < peak < len(large)
