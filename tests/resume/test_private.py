"""A private run that is interrupted goes on to the same bits, and goes on counting; a spent budget ends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.builders import assert_same_bits
from tests.small import stop_after, write_small
from typer.testing import CliRunner

from fedelta.cli import app
from fedelta.errors import CheckpointError, RunError
from fedelta.experiment import Experiment, Result
from fedelta.record.checkpoint import load
from fedelta.record.files import to_json
from fedelta.record.history import read_histories

# Much noise: an accountant needs milliseconds for it.
NOISY = ("privacy.noise_multiplier=8.0", "privacy.target_delta=0.01", "privacy.clipping_norm=0.5")
CASES = {
    "client": ("privacy.unit=client", *NOISY),
    "client, adaptive": ("privacy.unit=client", "privacy.clipping=adaptive", "privacy.count_noise=6.0", *NOISY),
    "example": ("privacy.unit=example", *NOISY),
    "local": ("privacy.unit=local", *NOISY),
}


def run_small(folder: Path, *overrides: str, **named: object) -> Result:
    return Experiment.from_toml(write_small(folder), overrides).run(folder / "run", **named)


def lines(run: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_a_private_run_that_is_interrupted_after_every_round_goes_on_to_the_same_bits(
    tmp_path: Path, overrides: tuple[str, ...]
):
    config = write_small(tmp_path)
    whole = Experiment.from_toml(config, overrides).run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(config, overrides).run(tmp_path / "parts", on_round=stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_run(tmp_path / "parts").resume(tmp_path / "parts", on_round=stop_after(2))
    parts = Experiment.from_run(tmp_path / "parts").resume(tmp_path / "parts")
    assert_same_bits(whole.params, parts.params)
    for name in ("rounds.jsonl", "ledger.jsonl", "privacy.json"):
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes()
    one, other = (load(run.path / "checkpoint/state.safetensors").privacy for run in (whole, parts))
    assert one == other
    spent = [line["epsilon"] for line in lines(whole)]
    assert spent == sorted(spent)
    assert 0 < spent[0] < spent[-1] == whole.summary["epsilon"]


def test_a_spent_budget_ends_the_run_after_an_evaluation_and_says_so_everywhere(tmp_path: Path):
    # Epsilon after one, two and three rounds: see the other test; the limit is between those of rounds 2 and 3.
    epsilons = [line["epsilon"] for line in lines(run_small(tmp_path, *CASES["client"]))]
    limit = f"privacy.max_epsilon={(epsilons[1] + epsilons[2]) / 2}"
    overrides = [*CASES["client"], limit, "evaluate_every=9"]
    arguments = [word for override in overrides for word in ("--set", override)]
    out = tmp_path / "halted"
    done = CliRunner().invoke(app, ["run", str(tmp_path / "small.toml"), "--out", str(out), *arguments])
    assert done.exit_code == 0, done.output
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rounds"], summary["epsilon"]) == (2, epsilons[1])
    assert summary["stopped"].startswith("The privacy budget is spent: the run ended after round 2 of 3")
    assert summary["final_accuracy"] == summary["measures"]["accuracy"]
    (history,) = read_histories([out])
    assert history.stopped == summary["stopped"]
    assert history.misfits == ()
    with pytest.raises(RunError, match=r"cannot go on. The privacy budget is spent: the run ended after round 2 of 3"):
        Experiment.from_run(out).resume(out)


def test_a_run_killed_between_its_last_round_and_its_summary_is_finished_although_its_budget_is_spent(tmp_path: Path):
    epsilons = [line["epsilon"] for line in lines(run_small(tmp_path, *CASES["client"]))]
    limit = f"privacy.max_epsilon={epsilons[1]}"
    config, path = tmp_path / "small.toml", tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(config, [*CASES["client"], limit]).run(path, on_round=stop_after(2))
    result = Experiment.from_run(path).resume(path)
    assert (result.summary["rounds"], result.summary["epsilon"]) == (2, epsilons[1])
    assert "stopped" in result.summary


@pytest.mark.parametrize(
    "change",
    [
        ("unit = \"client\"", "unit = \"local\""),
        ("noise_multiplier = 8.0", "noise_multiplier = 9.0"),
        ("target_delta = 0.01", "target_delta = 0.02"),
        ("clipping_norm = 0.5", "clipping_norm = 0.6"),
    ],
    ids=lambda change: change[0],
)  # fmt: skip
def test_a_changed_section_is_refused(tmp_path: Path, change: tuple[str, str]):
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_small(tmp_path, *CASES["client"], on_round=stop_after(1))
    config = path / "config.toml"
    config.write_text(config.read_text().replace(*change))
    with pytest.raises(CheckpointError, match=r"`privacy\.\w+` is .* in `config.toml`, the run began with"):
        Experiment.from_run(path).resume(path)


def test_a_changed_promise_and_a_state_that_was_tampered_with_are_refused(tmp_path: Path):
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_small(tmp_path, *CASES["client"], on_round=stop_after(1))
    promise = path / "privacy.json"
    as_written = promise.read_text()
    promise.write_text(to_json(json.loads(as_written) | {"limit": 1000.0}))
    with pytest.raises(CheckpointError, match=r"`privacy.json` promises `limit` = 1000.0, the settings make it None"):
        Experiment.from_run(path).resume(path)
    promise.write_text(as_written)
    state = path / "checkpoint/state.safetensors"
    content = state.read_bytes()
    assert b'\\"spent\\": {\\"\\": [[8.0, 0.5, 1]]}' in content
    state.write_bytes(content.replace(b"[[8.0, 0.5, 1]]", b"[[8.0, 0.1, 1]]"))
    with pytest.raises(CheckpointError, match="its content does not match its checksum"):
        Experiment.from_run(path).resume(path)


def test_a_run_that_its_byte_budget_ends_does_not_say_that_its_privacy_budget_did(tmp_path: Path):
    result = run_small(tmp_path, *CASES["local"], "privacy.max_epsilon=1e9", "byte_budget_mib=1e-6")
    assert len(lines(result)) == 1
    assert "stopped" not in result.summary
