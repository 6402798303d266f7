"""What clients keep between rounds: in two phases, and on disk a file for each client."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from tests.builders import assert_same_bits
from torch import tensor

from fedelta.errors import CheckpointError
from fedelta.federation.memory import Drift, Memories, Memory


def remembering(value: float) -> Memory:
    return Memory(remembered={"c": torch.full((3,), value)})


def value_of(memories: Memories, client_id: int) -> float | None:
    memory = memories.of(client_id)
    return None if memory is None else memory.remembered["c"][0].item()


def commit(memories: Memories, **values: float) -> None:
    """`_3=2.0`: client 3 remembers twos."""
    for key, value in values.items():
        memories.stage(int(key[1:]), remembering(value))
    memories.commit(int(key[1:]) for key in values)


def read_again(folder: Path, mark: str, client_id: int) -> Memory | None:
    memories = Memories()
    memories.restore(folder, mark)
    return memories.of(client_id)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Two phases.


def test_what_is_staged_counts_once_it_is_committed():
    memories = Memories()
    memories.stage(1, remembering(5.0))
    memories.stage(2, remembering(6.0))
    assert value_of(memories, 1) is None
    memories.commit([1])
    assert value_of(memories, 1) == 5.0
    assert value_of(memories, 2) is None


def test_what_was_not_committed_is_forgotten_with_the_commit_and_with_the_next_round():
    memories = Memories()
    memories.stage(1, remembering(5.0))
    memories.commit([])
    memories.commit([1])
    assert value_of(memories, 1) is None
    memories.stage(1, remembering(5.0))
    memories.begin([1])
    memories.commit([1])
    assert value_of(memories, 1) is None


def test_a_client_outside_of_the_cohort_drops_what_is_adrift_and_nothing_else():
    memories = Memories()
    drift = {"w": Drift(tensor(1.0), tensor(0.0))}
    for client_id in (1, 2):
        memories.stage(client_id, Memory(remembered={"c": tensor(7.0)}, adrift=drift))
    memories.commit([1, 2])
    memories.begin([2, 3])
    assert memories.of(1) == Memory(remembered={"c": tensor(7.0)})
    assert set(memories.of(2).adrift) == {"w"}


def test_a_memory_comes_back_from_its_flat_form():
    memory = Memory(
        local_only={"bn/x": tensor([1.0])},
        remembered={"control/w": tensor([2.0])},
        adrift={"a.b": Drift(tensor([3.0]), tensor([4.0]))},
        residual={"r": tensor([5.0])},
    )
    assert list(memory.flat()) == ["local_only/bn/x", "remembered/control/w", "value/a.b", "anchor/a.b", "residual/r"]
    assert_same_bits(Memory.from_flat(memory.flat()).flat(), memory.flat())


# On disk.


def test_a_snapshot_writes_the_clients_that_changed_and_no_other(tmp_path: Path):
    memories = Memories()
    commit(memories, _1=1.0, _2=2.0)
    memories.snapshot(tmp_path, 1)
    first_times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    commit(memories, _2=3.0)
    memories.snapshot(tmp_path, 2)
    second_times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert {path.name for path in second_times.keys() - first_times.keys()} == {"2-2.safetensors"}
    assert all(second_times[path] == first_times[path] for path in first_times)


def test_after_a_snapshot_no_memory_is_in_the_process_and_all_can_be_read(tmp_path: Path):
    memories = Memories()
    commit(memories, _1=1.0, _2=2.0)
    memories.snapshot(tmp_path, 1)
    assert memories._fresh == {}
    assert (value_of(memories, 1), value_of(memories, 2), value_of(memories, 3)) == (1.0, 2.0, None)


def test_tensors_come_back_in_their_order_and_with_their_types(tmp_path: Path):
    memories, tensors = Memories(), {"z": torch.rand(2, 3), "a": torch.zeros(0), "m": torch.rand(2).to(torch.bfloat16)}
    memories.stage(1, Memory(local_only=tensors))
    memories.commit([1])
    memories.snapshot(tmp_path, 1)
    assert_same_bits(memories.of(1).local_only, tensors)
    assert [(number, list(local_only)) for number, local_only in memories.local_only()] == [(1, ["z", "a", "m"])]


def test_a_kill_between_a_snapshot_and_its_checkpoint_leaves_the_one_before(tmp_path: Path):
    memories = Memories()
    commit(memories, _1=1.0, _2=2.0)
    mark = memories.snapshot(tmp_path, 1)
    commit(memories, _1=10.0, _3=30.0)
    memories.snapshot(tmp_path, 2)
    resumed = Memories()
    resumed.restore(tmp_path, mark)
    assert [value_of(resumed, client_id) for client_id in (1, 2, 3)] == [1.0, 2.0, None]
    # The round is run again, and gives the same.
    commit(resumed, _1=10.0, _3=30.0)
    resumed.snapshot(tmp_path, 2)
    assert [value_of(resumed, client_id) for client_id in (1, 2, 3)] == [10.0, 2.0, 30.0]


def test_which_clients_have_tensors_adrift_is_restored(tmp_path: Path):
    memories = Memories()
    memories.stage(1, Memory(adrift={"w": Drift(tensor(1.0), tensor(0.0))}))
    memories.commit([1])
    mark = memories.snapshot(tmp_path, 1)
    again = Memories()
    again.restore(tmp_path, mark)
    again.begin([2])
    assert again.of(1) is None


def test_files_that_no_checkpoint_can_need_are_deleted(tmp_path: Path):
    memories = Memories()
    (tmp_path / "9-9.safetensors").write_bytes(b"left behind by a kill")
    marks = []
    for round in (1, 2, 3):
        commit(memories, _1=float(round))
        marks.append(memories.snapshot(tmp_path, round))
    assert names(tmp_path) == {f"1-{n}.safetensors" for n in (2, 3)} | {f"index-{mark}.json" for mark in marks[1:]}


def test_a_state_that_comes_back_keeps_its_index(tmp_path: Path):
    # 1 keeps something, then nothing, then nothing again: the index of "nothing" is written once and stays.
    memories = Memories()
    commit(memories, _1=1.0)
    memories.snapshot(tmp_path, 1)
    memories.stage(1, Memory())
    memories.commit([1])
    empty = memories.snapshot(tmp_path, 2)
    for round in (3, 4, 5):
        assert memories.snapshot(tmp_path, round) == empty
    again = Memories()
    again.restore(tmp_path, empty)
    assert again.of(1) is None


def test_clients_that_keep_nothing_write_nothing(tmp_path: Path):
    memories = Memories()
    memories.stage(1, Memory())
    memories.commit([1])
    assert memories.snapshot(tmp_path / "clients", 1) == ""
    assert not (tmp_path / "clients").exists()
    memories.restore(tmp_path / "clients", "")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_snapshot_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure):
    memories = Memories()
    commit(memories, _1=1.0)
    mark = memories.snapshot(tmp_path, 1)
    commit(memories, _1=2.0, _2=2.0)

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(failure)):
        memories.snapshot(tmp_path, 2)
    monkeypatch.undo()
    again = Memories()
    again.restore(tmp_path, mark)
    assert value_of(again, 1) == 1.0
    # The process that failed has lost nothing either.
    memories.snapshot(tmp_path, 2)
    assert (value_of(memories, 1), value_of(memories, 2)) == (2.0, 2.0)


@pytest.mark.parametrize("pattern", ["1-1.safetensors", "index-*.json"])
@pytest.mark.parametrize("change", ["deleted", "altered", "of another client"])
def test_files_that_were_touched_are_refused_by_name(tmp_path: Path, pattern: str, change: str):
    memories = Memories()
    commit(memories, _1=1.0, _2=2.0)
    mark = memories.snapshot(tmp_path, 1)
    (path,) = tmp_path.glob(pattern)
    if change == "deleted":
        path.unlink()
    elif change == "altered":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes((tmp_path / "2-1.safetensors").read_bytes())
    with pytest.raises(CheckpointError) as caught:
        read_again(tmp_path, mark, 1)
    assert path.name in caught.value.message
    assert caught.value.hint == "it was deleted or damaged; restore it from a backup, or start the run again."
