"""The versions of what clients remember, on a site's disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from fedelta.federation.memory import Drift, Memory
from fedelta.runtimes.remote.store import NOTHING, MemoryStore


def memory(value: float) -> Memory:
    tensor = torch.full((3,), value)
    return Memory({"norm": tensor}, {"c": tensor + 1}, {"w": Drift(tensor + 2, tensor + 3)}, {"w": tensor + 4})


def versions(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def test_another_process_reads_what_one_has_written(tmp_path):
    assert MemoryStore(tmp_path / "run").write(7, 3, memory(1.0)) == 3
    read = MemoryStore(tmp_path / "run").read(7, 3)
    assert read is not None
    assert list(read.flat()) == list(memory(1.0).flat())
    assert all(torch.equal(read.flat()[name], tensor) for name, tensor in memory(1.0).flat().items())


def test_a_client_that_keeps_nothing_has_no_version_and_no_file(tmp_path):
    store = MemoryStore(tmp_path)
    store.write(7, 3, memory(1.0))
    assert store.write(7, 3, Memory()) == NOTHING
    assert versions(tmp_path) == []


def test_what_was_never_written_or_is_damaged_is_not_there(tmp_path, caplog):
    store = MemoryStore(tmp_path)
    store.write(7, 3, memory(1.0))
    assert store.read(7, 2) is None
    assert store.read(8, 3) is None
    path = tmp_path / "7-3.memory"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert store.read(7, 3) is None
    assert "client 7 from round 3 cannot be read: its content does not match its checksum" in caplog.text
    path.unlink()
    assert store.read(7, 3) is None


def test_the_expected_version_and_later_ones_stay(tmp_path):
    # Round 3 was accepted, round 5 too. The message of round 6 says so; before it came, both are there.
    store = MemoryStore(tmp_path)
    store.write(7, 3, memory(3.0))
    store.write(7, 5, memory(5.0))
    store.expect(7, 3, 5)  # the message of round 5 came again, to a server that was killed after it
    assert versions(tmp_path) == ["7-3.memory", "7-5.memory"]
    store.expect(7, 5, 6)
    assert versions(tmp_path) == ["7-5.memory"]


def test_versions_of_replies_that_were_not_accepted_do_not_pile_up(tmp_path):
    store = MemoryStore(tmp_path)
    for round in (1, 2, 3):
        store.expect(7, 1 if round > 1 else NOTHING, round)  # only the reply of round 1 was accepted
        store.write(7, round, memory(round))
    assert versions(tmp_path) == ["7-1.memory", "7-3.memory"]


def test_a_late_message_deletes_nothing_newer(tmp_path):
    store = MemoryStore(tmp_path)
    for round in (1, 3, 4):
        store.write(7, round, memory(round))
    store.expect(7, 1, 4)
    assert versions(tmp_path) == ["7-1.memory", "7-3.memory", "7-4.memory"]


def test_other_clients_are_left_alone(tmp_path):
    store = MemoryStore(tmp_path)
    store.write(7, 1, memory(1.0))
    store.write(77, 1, memory(2.0))
    store.expect(7, 2, 3)
    assert versions(tmp_path) == ["77-1.memory"]


def test_a_full_disk_leaves_the_version_before(tmp_path, monkeypatch):
    store = MemoryStore(tmp_path)
    store.write(7, 1, memory(1.0))

    def full(descriptor: int, content: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left on device"):
        store.write(7, 2, memory(2.0))
    assert versions(tmp_path) == ["7-1.memory"]
    assert store.read(7, 1) is not None
