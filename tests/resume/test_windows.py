"""A run that is interrupted inside a window goes on to the same bits: what clients have not sent yet is not lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.builders import assert_same_bits, assert_same_memories, memories_in
from tests.small import CONVOLUTIONAL, SMALL, stop_after, write_small

from fedelta.experiment import Experiment, Result
from fedelta.params import Params
from fedelta.record.checkpoint import Checkpoint, load

# Windows end with rounds 4, 8 and 10. Until round 4 everything travels in every round; then intervals are chosen.
PHI, NUM_ROUNDS = 4, 10
FEDLAMA = (
    "tuning.name=full", "tuning.r=", "client.local_epochs=", "strategy.name=fedlama", f"strategy.phi={PHI}",
    "strategy.tau=2", f"strategy.num_rounds={NUM_ROUNDS}", "evaluate_every=4",
)  # fmt: skip
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "everybody answers": (SMALL, ()),
    "lost clients": (SMALL, ("stability.dropout_fraction=0.2", "stability.vanish_fraction=0.2")),
    # With this seed it is the last round but one of the second window that does not count.
    "void rounds": (
        SMALL,
        ("seed=2", "strategy.min_replies=2", "stability.dropout_fraction=0.2", "stability.vanish_fraction=0.2"),
    ),
    "statistics": (CONVOLUTIONAL, ()),
}  # fmt: skip


def settings(case: str) -> tuple[str, tuple[str, ...]]:
    text, overrides = CASES[case]
    # The network of CONVOLUTIONAL is tuned by 'parallel', which has no `r`.
    return text, tuple(item for item in FEDLAMA if text is SMALL or item != "tuning.r=") + overrides


def checkpoint_of(path: Path) -> Checkpoint:
    return load(path / "checkpoint/state.safetensors")


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Result]:
    folder = tmp_path_factory.mktemp("whole")
    text, overrides = settings(request.param)
    return request.param, Experiment.from_toml(write_small(folder, text=text), overrides).run(folder / "whole")


def interrupted(folder: Path, case: str, rounds: Sequence[int]) -> tuple[Result, dict[int, dict[int, Params]]]:
    """The result of a run that was interrupted after each of `rounds`, and what clients kept then."""
    text, overrides = settings(case)
    first, *others = rounds
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(write_small(folder, text=text), overrides).run(
            folder / "parts", on_round=stop_after(first)
        )
    by_name = {first: memories_in(folder / "parts")}
    for round in others:
        with pytest.raises(KeyboardInterrupt):
            Experiment.from_run(folder / "parts").resume(folder / "parts", on_round=stop_after(round))
        by_name[round] = memories_in(folder / "parts")
    return Experiment.from_run(folder / "parts").resume(folder / "parts"), by_name


def lines_of(run: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]


def check(whole: Result, parts: Result) -> None:
    assert_same_bits(whole.params, parts.params)
    for name in ("rounds.jsonl", "ledger.jsonl"):
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes()
    one, other = checkpoint_of(whole.path), checkpoint_of(parts.path)
    assert_same_bits(one.state, other.state)
    assert_same_memories(whole.path, parts.path)


# A run that is interrupted after every round of a window is as good as one run for each of these rounds: what one
# interruption loses, none that follows brings back.
INTERRUPTIONS = {
    "everybody answers": (5, 6, 7, 8),
    "lost clients": (5, 6, 7, 8),
    "void rounds": (6, 7),
    "statistics": (5, 6),
}


@pytest.mark.parametrize(("whole", "rounds"), INTERRUPTIONS.items(), indirect=["whole"])
def test_a_run_interrupted_inside_a_window_goes_on_to_the_same_bits(
    tmp_path: Path, whole: tuple[str, Result], rounds: tuple[int, ...]
):
    case, undisturbed = whole
    parts, result = interrupted(tmp_path, case, rounds)
    check(undisturbed, parts)
    # Something was with the clients in the middle of the window, as it is and as it came down.
    lines = lines_of(undisturbed)
    for round, memories in result.items():
        lost = {item["client_id"] for item in lines[round - 1]["rejections"]}
        assert set(memories) <= lost if round == 2 * PHI else memories
        for tensors in memories.values():
            assert {name.partition("/")[0] for name in tensors} == {"value", "anchor"}
    if case == "statistics":
        adrift = [name for tensors in result[5].values() for name in tensors]
        assert any(name.endswith("running_mean") for name in adrift)


@pytest.mark.parametrize("whole", CASES, indirect=True)
def test_the_runs_that_are_interrupted_are_what_they_are_called(whole: tuple[str, Result]):
    case, run = whole
    lines = lines_of(run)[4:7]
    assert max(line["synced_fraction"] for line in lines) < 1
    assert any(line["rejections"] for line in lines) == (case in ("lost clients", "void rounds"))
    assert any(line["num_examples"] == 0 for line in lines) == (case == "void rounds")
