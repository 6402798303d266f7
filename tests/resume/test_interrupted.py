"""A run that is interrupted between rounds goes on to the same bits, whatever the strategy remembers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.builders import assert_same_bits, assert_same_memories, memories_in
from tests.small import stop_after, write_small

from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment
from fedelta.record.checkpoint import load

CASES = {
    "momentum": ("strategy.name=fedavgm",),
    "adam": ("strategy.name=fedadam",),
    "control variates": ("strategy.name=scaffold", "strategy.clients_per_round=4"),
    "lost clients": (
        "stability.dropout_fraction=0.3",
        "stability.vanish_fraction=0.3",
        "stability.examples_per_second=5.0",
        "stability.deadline_seconds=60.0",
    ),
}


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, overrides: tuple[str, ...]):
    config = write_small(tmp_path)
    whole = Experiment.from_toml(config, overrides).run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(config, overrides).run(tmp_path / "parts", on_round=stop_after(2))
    parts = Experiment.from_run(tmp_path / "parts").resume(tmp_path / "parts")
    assert_same_bits(whole.params, parts.params)
    for name in ("rounds.jsonl", "ledger.jsonl"):
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes()
    one, other = (load(run.path / "checkpoint/state.safetensors") for run in (whole, parts))
    assert_same_bits(one.state, other.state)
    assert_same_memories(whole.path, parts.path)


def test_what_clients_remember_is_in_the_checkpoint_and_none_of_the_model(tmp_path: Path):
    run = Experiment.from_toml(write_small(tmp_path), CASES["control variates"]).run(tmp_path / "run")
    memories = memories_in(run.path)
    assert memories.keys() == run.ledger.client_ids
    assert all(name.startswith("remembered/control/") for tensors in memories.values() for name in tensors)
    # One model for everybody: it is evaluated once, and predicts without a client.
    assert evaluate_adapter(run.path).measures["accuracy"] == run.measures["accuracy"]
    assert len(run.predictor().predict([])) == 0
