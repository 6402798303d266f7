from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedelta.durable import write_atomic
from fedelta.errors import RunError
from fedelta.record.files import JsonLines, exclusive, in_turn, read_json, to_json


def disk_full(*arguments: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*arguments: object) -> int:
    raise KeyboardInterrupt


def write_some_then_fail(failure):
    """`os.write` that takes three bytes and then fails, as a disk does that fills up."""
    write, calls = os.write, []

    def partial(descriptor: int, content: memoryview) -> int:
        calls.append(1)
        return write(descriptor, content[:3]) if len(calls) == 1 else failure()

    return partial


FAILURES = [(disk_full, OSError), (interrupt, KeyboardInterrupt)]


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
@pytest.mark.parametrize(("failure", "expected"), FAILURES)
def test_a_failed_write_leaves_the_previous_file_and_no_temporary(tmp_path, monkeypatch, stage, failure, expected):
    path = tmp_path / "state"
    write_atomic(path, b"previous")
    monkeypatch.setattr(os, stage, write_some_then_fail(failure) if stage == "write" else failure)
    with pytest.raises(expected):
        write_atomic(path, b"the next content")
    monkeypatch.undo()
    assert path.read_bytes() == b"previous"
    assert [item.name for item in tmp_path.iterdir()] == ["state"]


def test_a_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "state"
    write_atomic(path, "a long previous content")
    write_atomic(path, "shört")
    assert path.read_text(encoding="utf-8") == "shört"


def test_what_a_kill_left_behind_is_overwritten(tmp_path):
    (tmp_path / ".state.partial").write_bytes(b"half of something longer than the next")
    write_atomic(tmp_path / "state", b"next")
    assert [item.name for item in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_bytes() == b"next"


@pytest.mark.parametrize("stage", ["write", "fsync"])
@pytest.mark.parametrize(("failure", "expected"), FAILURES)
def test_a_failed_append_is_taken_back(tmp_path, monkeypatch, stage, failure, expected):
    lines = JsonLines(tmp_path / "log.jsonl")
    lines.append([{"round": 1}])
    monkeypatch.setattr(os, stage, write_some_then_fail(failure) if stage == "write" else failure)
    with pytest.raises(expected):
        lines.append([{"round": 2}, {"round": 3}])
    monkeypatch.undo()
    assert lines.path.read_bytes() == b'{"round": 1}\n'


def test_records_come_back_as_they_were_written(tmp_path):
    lines = JsonLines(tmp_path / "log.jsonl")
    assert lines.num_bytes == 0
    assert lines.read() == []
    records = [{"b": 0.1 + 0.2, "a": None}, {"name": "Zürich\n", "list": [1, {"x": 1e-300}]}]
    lines.append(records[:1])
    lines.append(records[1:])
    assert lines.read() == records
    assert list(lines.read()[0]) == ["b", "a"]
    assert lines.num_bytes == len(lines.path.read_bytes())


def test_an_append_is_one_sync(tmp_path, monkeypatch):
    lines = JsonLines(tmp_path / "log.jsonl")
    lines.append([{"round": 0}])
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    lines.append([{"round": number} for number in range(50)])
    assert len(synced) == 1


def test_not_a_number_and_infinity_become_null():
    assert to_json({"loss": float("nan"), "all": (float("inf"), 1.5)}) == '{"loss": null, "all": [null, 1.5]}'


def test_truncation_goes_back_to_a_remembered_length(tmp_path):
    lines = JsonLines(tmp_path / "log.jsonl")
    lines.truncate(0)
    assert not lines.path.exists()
    lines.append([{"round": 1}])
    remembered = lines.num_bytes
    lines.append([{"round": 2}])
    lines.truncate(remembered)
    assert lines.read() == [{"round": 1}]
    lines.truncate(0)
    assert lines.num_bytes == 0


def test_truncation_refuses_a_file_that_lost_content(tmp_path):
    lines = JsonLines(tmp_path / "log.jsonl")
    lines.append([{"round": 1}])
    with pytest.raises(RunError, match="has 13 bytes, the checkpoint was written when it had 14"):
        lines.truncate(14)
    assert lines.read() == [{"round": 1}]


def test_truncation_refuses_a_place_inside_a_line(tmp_path):
    lines = JsonLines(tmp_path / "log.jsonl")
    lines.append([{"round": 1}])
    with pytest.raises(RunError, match="no end of line at byte 5"):
        lines.truncate(5)
    assert lines.read() == [{"round": 1}]


def test_an_unterminated_last_line_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"round": 1}\n{"rou')
    assert JsonLines(path).read() == [{"round": 1}]


@pytest.mark.parametrize(
    ("line", "message"), [(b'{"round"', "line 2: not valid JSON"), (b"[1]", "line 2: expected a JSON object")]
)
def test_a_corrupt_line_is_named(tmp_path, line, message):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"round": 1}\n' + line + b'\n{"round": 3}\n')
    with pytest.raises(RunError, match=message):
        JsonLines(path).read()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read"), (b"{", "not valid JSON"), (b"[]", "expected an object")]
)
def test_a_json_file_that_cannot_be_used_is_named(tmp_path: Path, content, message):
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=message):
        read_json(path)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such lock")
def test_an_exclusive_file_is_for_one_at_a_time_and_is_not_changed(tmp_path):
    path = tmp_path / "lock"
    path.write_text("content")
    with exclusive(path, "taken"), pytest.raises(RunError) as caught, exclusive(path, "taken by another."):
        pass
    assert (caught.value.message, caught.value.hint) == ("taken by another.", "wait for it, or end it.")
    with exclusive(path, "taken"):
        pass
    assert path.read_text() == "content"


# Has the lock until its input ends, and a moment longer.
HOLD = """
import pathlib, sys, time
from fedelta.record.files import exclusive
path = pathlib.Path(sys.argv[1])
with exclusive(path, "taken"):
    print("held", flush=True)
    sys.stdin.read()
    time.sleep(0.3)
    path.write_text("left")
"""


@pytest.fixture
def lock(tmp_path) -> Path:
    path = tmp_path / "lock"
    path.touch()
    return path


@pytest.fixture
def holder(lock) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which has the lock."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such lock")
def test_an_exclusive_file_is_free_again_when_its_process_is_killed(lock, holder):
    with pytest.raises(RunError, match="taken"), exclusive(lock, "taken"):
        pass
    holder.kill()
    holder.wait()
    with exclusive(lock, "taken"):
        assert lock.read_text() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such lock")
def test_who_comes_in_turn_waits(lock, holder):
    holder.stdin.close()
    with in_turn(lock):
        assert lock.read_text() == "left"
