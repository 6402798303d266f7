"""Runs with exits: what is written, what is refused, and that an interrupted one goes on to the same bits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest
from tests.builders import assert_same_bits
from tests.small import stop_after, write_small

from fedelta.codecs.wire import encode
from fedelta.errors import ConfigError
from fedelta.experiment import Experiment, Result
from fedelta.params import select

ACCUMULATOR = ("tuning.name=accumulator", "tuning.num_heads=2", "tuning.mlp_width=24", "tuning.head_width=12")
HEADS = ("tuning.name=exit-heads",)
CASES: dict[str, tuple[str, ...]] = {
    "tiers": (*ACCUMULATOR, "exits.tiers=[1, 2]", "exits.assignment=shuffle"),
    "random": (*ACCUMULATOR, "exits.train=random"),
    "random in tiers, with control variates": (
        *HEADS, "exits.train=random", "exits.tiers=[1, 2]", "strategy.name=scaffold",
    ),
    "tiers in windows": (
        *HEADS, "exits.tiers=[1, 2]", "strategy.name=fedlama", "strategy.phi=2", "strategy.tau=2",
        "client.local_epochs=",
    ),
}  # fmt: skip


def experiment(folder: Path, overrides: Sequence[str]) -> Experiment:
    return Experiment.from_toml(write_small(folder), ["tuning.r=", *overrides])


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path: Path, case: str):
    whole = experiment(tmp_path, CASES[case]).run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        experiment(tmp_path, CASES[case]).run(tmp_path / "parts", on_round=stop_after(1))
    parts = Experiment.from_run(tmp_path / "parts").resume(tmp_path / "parts")
    assert_same_bits(whole.params, parts.params)
    for name in ("rounds.jsonl", "ledger.jsonl"):
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes()


def read(run: Result) -> tuple[dict[str, object], list[dict[str, object]]]:
    lines = (run.path / "rounds.jsonl").read_text().splitlines()
    return json.loads((run.path / "summary.json").read_text()), [json.loads(line) for line in lines]


def test_accuracies_by_exit_are_written_where_a_round_was_evaluated(tmp_path: Path):
    summary, rounds = read(experiment(tmp_path, (*ACCUMULATOR, "evaluate_every=2")).run(tmp_path / "run"))
    assert ["measures_by_exit" in item for item in rounds] == [False, True, True]
    assert all(len(item["measures_by_exit"]["accuracy"]) == 2 for item in rounds[1:])
    assert all(item["measures"]["accuracy"] == item["measures_by_exit"]["accuracy"][-1] for item in rounds[1:])
    assert summary["accuracy_by_exit"] == rounds[-1]["measures_by_exit"]["accuracy"]
    assert summary["mean_exit_accuracy"] == pytest.approx(fmean(summary["accuracy_by_exit"]))


def test_without_exits_they_are_null(tmp_path: Path):
    summary, rounds = read(Experiment.from_toml(write_small(tmp_path)).run(tmp_path / "run"))
    assert summary["accuracy_by_exit"] is summary["mean_exit_accuracy"] is None
    assert not any("measures_by_exit" in item for item in rounds)


def test_shallow_clients_move_fewer_bytes(tmp_path: Path):
    ledgers = []
    for number, tiers in enumerate(("[1]", "[1, 2]", "[2]")):
        run = experiment(tmp_path, (*ACCUMULATOR, f"exits.tiers={tiers}")).run(tmp_path / str(number))
        ledgers.append(read(run)[0])
    for key in ("uplink_bytes", "downlink_bytes"):
        assert ledgers[0][key] < ledgers[1][key] < ledgers[2][key]


@pytest.mark.parametrize("field", ["exits.train=random", "exits.tiers=[1]"])
def test_exits_are_refused_for_a_method_that_gives_none(tmp_path: Path, field: str):
    config = Experiment.from_toml(write_small(tmp_path), [field])
    with pytest.raises(
        ConfigError, match=r"`\[exits\]` is there, but tuning method 'lora' gives .* no exits"
    ) as caught:
        _ = config.assembly
    assert caught.value.hint == "'accumulator' and 'exit-heads' do; leave the section out for the others."


def test_a_deadline_is_compared_with_what_each_client_is_sent(tmp_path: Path):
    # At 1 Mbit/s the two tiers differ by one position of 32 float16 and its header: the deadline lies between.
    slow = (*ACCUMULATOR, "exits.tiers=[1, 2]", "stability.megabits_per_second=1.0")
    assembly = experiment(tmp_path, slow).assembly
    sizes = [
        len(
            encode(select(assembly.params, assembly.site.held(client_id)), assembly.spec, assembly.config.codec.down)[0]
        )
        for client_id in (0, 1)
    ]
    assert sizes[0] < sizes[1]
    between = 2 * 8e-6 * sum(sizes) / 2
    # Three of six clients can meet it.
    settings = (*slow, f"stability.deadline_seconds={between}", "strategy.clients_per_round=4")
    assert experiment(tmp_path, (*settings, "strategy.min_replies=3")).assembly.site.tiers is not None
    with pytest.raises(ConfigError, match="which 3 of 6 clients can meet"):
        _ = experiment(tmp_path, (*settings, "strategy.min_replies=4")).assembly
