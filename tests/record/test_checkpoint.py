from __future__ import annotations

import dataclasses
import errno
import os

import pytest
import torch
from safetensors.torch import save as save_tensors

from fedelta.errors import CheckpointError
from fedelta.params import ParamSpec, TensorSpec
from fedelta.record import checkpoint
from fedelta.record.checkpoint import Checkpoint, check_fit, decode, encode, load, save
from fedelta.record.files import Mark
from fedelta.record.origin import Origin

SPEC = ParamSpec({"z": TensorSpec((2, 3), "one"), "a": TensorSpec((), "one"), "m": TensorSpec((4,), "two")})


def a_checkpoint(**changes: object) -> Checkpoint:
    generator = torch.Generator().manual_seed(1)
    params = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in SPEC.tensors.items()}
    state = {
        "momentum": torch.randn(5, generator=generator, dtype=torch.float64),
        "half": torch.randn(3, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(12, dtype=torch.int64),
        "empty": torch.zeros(0, 2),
    }
    fields = {
        "round": 7,
        "params": params,
        "state": state,
        "claimed": {3: 40, 11: 7},
        "memory_mark": "0123456789abcdef",
        "logs": {"rounds.jsonl": Mark(100, "12ab"), "ledger.jsonl": Mark(2000, "34cd")},
        "origin": Origin({"seed": "7"}, {"test examples": "56ef"}, {"model.json": "78"}),
    }
    return Checkpoint(**{**fields, **changes})


def assert_same(left: Checkpoint, right: Checkpoint) -> None:
    for field in dataclasses.fields(Checkpoint):
        one, other = getattr(left, field.name), getattr(right, field.name)
        if field.name in {"params", "state"}:
            assert list(one) == list(other)
            for name in one:
                assert one[name].dtype == other[name].dtype
                assert one[name].shape == other[name].shape
                assert torch.equal(one[name], other[name])
        else:
            assert one == other


def test_a_checkpoint_comes_back_with_the_same_bits_and_order(tmp_path):
    path = tmp_path / "state.safetensors"
    save(path, a_checkpoint())
    assert_same(load(path), a_checkpoint())
    assert list(load(path).params) == ["z", "a", "m"]


def test_a_checkpoint_of_an_older_format_says_what_to_do(monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", "fedelta-checkpoint-5")
    content = encode(a_checkpoint())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 'fedelta-checkpoint-5', this version reads") as caught:
        decode(content)
    assert caught.value.hint == checkpoint.OTHER_VERSION


def test_tensors_that_share_memory_or_are_not_contiguous_can_be_saved():
    weight = torch.arange(6.0).reshape(2, 3)
    shared = a_checkpoint(params={"w": weight, "t": weight.T}, state={"w": weight, "row": weight[1]})
    assert_same(decode(encode(shared)), shared)


def test_what_is_loaded_can_be_changed_without_the_file_noticing(tmp_path):
    path = tmp_path / "state.safetensors"
    save(path, a_checkpoint())
    load(path).params["z"].zero_()
    assert_same(load(path), a_checkpoint())


def test_equal_checkpoints_give_equal_bytes():
    assert encode(a_checkpoint()) == encode(a_checkpoint())


def test_every_truncation_is_refused():
    content = encode(a_checkpoint())
    for length in range(len(content)):
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            decode(content[:length])


def test_every_flipped_bit_is_refused():
    content = bytearray(encode(a_checkpoint()))
    for position in range(len(content)):
        content[position] ^= 1 << position % 8
        with pytest.raises(CheckpointError):
            decode(bytes(content))
        content[position] ^= 1 << position % 8
    assert_same(decode(bytes(content)), a_checkpoint())


def test_bytes_after_the_end_are_refused():
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        decode(encode(a_checkpoint()) + b"\0")


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(save_tensors({"w": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"state\.safetensors.*no complete checkpoint"):
        load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot read checkpoint"):
        load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({**SPEC.tensors, "more": TensorSpec((1,), "two")}, "lacks `more`"),
        ({**SPEC.tensors, "m": TensorSpec((5,), "two")}, r"`m` has shape \(4,\), expected \(5,\)"),
        (dict(reversed(SPEC.tensors.items())), "another order"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, tensors, message):
    path = tmp_path / "state.safetensors"
    save(path, a_checkpoint())
    with pytest.raises(CheckpointError, match=message):
        check_fit(path, load(path), ParamSpec(tensors))


def test_a_checkpoint_that_is_not_finite_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    broken = a_checkpoint()
    broken.params["z"][0, 0] = float("nan")
    save(path, broken)
    with pytest.raises(CheckpointError, match="1 values that are NaN"):
        check_fit(path, load(path), SPEC)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("stage", ["write", "replace"])
def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch, stage, failure):
    path = tmp_path / "state.safetensors"
    save(path, a_checkpoint())

    def fail(*arguments: object) -> int:
        raise failure

    monkeypatch.setattr(os, stage, fail)
    with pytest.raises(type(failure)):
        save(path, a_checkpoint(round=8))
    monkeypatch.undo()
    assert load(path).round == 7
    assert len(list(tmp_path.iterdir())) == 1
