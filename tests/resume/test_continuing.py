"""A run, finished or not, goes on with other settings that change nothing computed so far; anything else is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.builders import assert_same_bits, assert_same_memories
from tests.resume.children import in_child
from tests.small import stop_after, write_small
from typer.testing import CliRunner

import fedelta
from fedelta.cli import app
from fedelta.errors import CheckpointError, InputError, RunError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment
from fedelta.record.amending import AMENDMENT, changes_of
from fedelta.record.history import read_histories
from fedelta.report.writing import write_report

FILES = ("config.toml", "rounds.jsonl", "ledger.jsonl", "model.json", "adapter/adapter_model.safetensors")
LONGER = ("strategy.num_rounds=6",)
FULL = ("tuning.name=full", "tuning.r=")
FEDLAMA = (*FULL, "client.local_epochs=", "strategy.name=fedlama", "strategy.tau=2")
NOISY = ("privacy.unit=client", "privacy.noise_multiplier=8.0", "privacy.target_delta=0.01")
EXACT = {
    "fedavg": (),
    "control variates": ("strategy.name=scaffold", "client.optimizer.name=sgd"),
    "residuals and changes": ("codec.name=int8",),
    "steps of a schedule": ("client.schedule.name=step", "client.schedule.after_rounds=[1, 5]"),
    "whole windows": (*FEDLAMA, "strategy.phi=3"),
    "private": NOISY,
}


def finished(folder: Path, *overrides: str, name: str = "run") -> Path:
    return Experiment.from_toml(write_small(folder), overrides).run(folder / name, writes_page=False).path


def longer(run: Path, *overrides: str) -> fedelta.Result:
    return Experiment.from_run(run, overrides=overrides or LONGER).resume(run, writes_page=False)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three rounds, to be copied."""
    return finished(tmp_path_factory.mktemp("short"))


@pytest.fixture
def run(short: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(short, tmp_path / "run")


@pytest.mark.parametrize("overrides", EXACT.values(), ids=EXACT)
def test_a_finished_run_goes_on_to_the_bits_of_one_that_was_planned_as_long(tmp_path: Path, overrides: tuple[str, ...]):
    whole = Experiment.from_toml(write_small(tmp_path), [*overrides, *LONGER]).run(tmp_path / "whole")
    run = finished(tmp_path, *overrides)
    result = longer(run)
    assert_same_bits(whole.params, result.params)
    for name in FILES:
        assert (whole.path / name).read_bytes() == (run / name).read_bytes(), name
    assert_same_memories(whole.path, run)
    assert whole.summary["measures"] == result.summary["measures"]
    assert changes_of(run) == [{"round": 3, "changed": {"strategy.num_rounds": ["3", "6"]}, "departures": []}]
    assert read_histories([run])[0].misfits == ()


def test_a_run_that_was_stopped_goes_on_as_if_planned_longer_though_its_strategy_knows_its_last_round(tmp_path: Path):
    overrides = (*FEDLAMA, "strategy.phi=2")
    whole = Experiment.from_toml(write_small(tmp_path), [*overrides, *LONGER]).run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(write_small(tmp_path), overrides).run(tmp_path / "run", on_round=stop_after(2))
    assert_same_bits(whole.params, longer(tmp_path / "run").params)
    assert changes_of(tmp_path / "run")[0]["departures"] == []
    assert not [*(tmp_path / "run").glob("after-*")]  # it had no results yet


def test_a_run_that_its_byte_budget_ended_goes_on_with_a_larger_one(tmp_path: Path):
    whole = finished(tmp_path, name="whole")
    run = finished(tmp_path, "byte_budget_mib=1e-6")
    assert len((run / "rounds.jsonl").read_text().splitlines()) == 1
    longer(run, "byte_budget_mib=")
    for name in FILES:
        assert (whole / name).read_bytes() == (run / name).read_bytes(), name


@pytest.mark.parametrize(
    ("overrides", "departure"),
    [
        # Cosine: 1 / 2 (1 + cos(2 pi / 3)) = 1 / 4 in round 3 of 3, and 1 / 2 (1 + cos(3 pi / 6)) in round 4 of 6.
        (("client.schedule.name=cosine",), "came to 0.025 as for 3 rounds, from round 4 on .* of 6 rounds, 0.05 "),
        ((*FEDLAMA, "strategy.phi=2"), r"its window \(`strategy.phi` = 2 rounds\) ended early"),
        ((*FEDLAMA, "strategy.phi=3", *NOISY), "its discrepancies were not measured"),
        ((*FEDLAMA, "strategy.name=fedlama-auto", "strategy.share=0.9", "strategy.phi=3"), "chosen so that 3 rounds"),
        ((*FEDLAMA, "strategy.name=fedlama-auto", "strategy.tolerance=1.0", "strategy.phi=3"), "no new intervals"),
    ],
    ids=["schedule", "window", "private window", "share", "tolerance"],
)
def test_a_run_tells_and_keeps_in_what_it_differs_from_one_that_was_planned_as_long(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, overrides: tuple[str, ...], departure: str
):
    run = finished(tmp_path, *overrides)
    caplog.clear()
    assert longer(run).summary["rounds"] == 6
    assert re.search(departure, caplog.text)
    assert re.search(departure, changes_of(run)[0]["departures"][0])
    write_report([run], tmp_path / "page.html")
    assert "After round 3 the run went on with other settings" in (tmp_path / "page.html").read_text()


def test_what_a_finished_run_came_to_is_set_aside_and_it_counts_as_unfinished_until_it_ends_again(tmp_path: Path):
    run = finished(tmp_path, "personalization.held_out_clients=1", "personalization.lrs=[0.1]")
    fedelta.personalize(run)
    before = {name: (run / name).read_bytes() for name in ("summary.json", "personalization.json")}
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_run(run, overrides=LONGER).resume(run, on_round=stop_after(4))
    assert {name: (run / "after-3-rounds" / name).read_bytes() for name in before} == before
    assert (run / "after-3-rounds/adapter/adapter_model.safetensors").is_file()
    with pytest.raises(RunError, match="is not finished"):
        evaluate_adapter(run)
    assert Experiment.from_run(run).resume(run).summary["rounds"] == 6
    assert evaluate_adapter(run).measures
    assert not (run / "personalization.json").exists()


def test_settings_that_change_no_bits_change_no_results(run: Path):
    results = {name: (run / name).read_bytes() for name in ("rounds.jsonl", "adapter/adapter_model.safetensors")}
    longer(run, "runtime.workers=2", "evaluate_every=2", 'tracking.tools=["tensorboard"]')
    config = fedelta.load_config(run / "config.toml")
    assert (config.runtime.workers, config.evaluate_every, config.tracking.tools) == (2, 2, ("tensorboard",))
    assert {name: (run / name).read_bytes() for name in results} == results
    assert not [*run.glob("after-*")]


REFUSED = {
    "client.lr=0.2": r"`client.lr` is 0.1 there and would be 0.2",
    "codec.name=int4": r"`codec.name` is float16 there and would be int4",
    "personalization.held_out_clients=2": "`personalization.held_out_clients` is ",
    "runtime.lanes=2": "`runtime.lanes` is auto there and would be 2",
    "strategy.num_rounds=2": "is 2, but run .* has done 3 rounds",
    "strategy.num_rouns=6": "did you mean `strategy.num_rounds`",
    "runtime.name=flower": "this experiment runs on sites",
}


@pytest.mark.parametrize(("override", "problem"), REFUSED.items())
def test_what_would_change_the_rounds_so_far_is_refused_and_leaves_the_run_as_it_is(
    run: Path, override: str, problem: str
):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=problem):
        longer(run, override)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "privacy",
    [
        ("privacy.unit=client", "privacy.target_epsilon=5.0", "privacy.accountant=rdp"),
        (*NOISY, "privacy.mechanism=banded", "privacy.bands=2"),
    ],
    ids=["target", "banded"],
)
def test_more_rounds_are_refused_where_the_noise_was_calculated_for_so_many(tmp_path: Path, privacy: tuple[str, ...]):
    run = finished(tmp_path, *privacy)
    with pytest.raises(InputError, match="was calculated for its number of rounds"):
        longer(run)


def test_a_configuration_that_was_edited_by_hand_is_refused_as_ever(run: Path):
    config = run / "config.toml"
    config.write_text(config.read_text().replace("num_rounds = 3", "num_rounds = 6"))
    with pytest.raises(CheckpointError, match=r"`strategy.num_rounds` is 6 in `config.toml`, the run began with 3"):
        Experiment.from_run(run).resume(run)


def test_the_command_goes_on_with_a_finished_run(run: Path):
    done = CliRunner().invoke(app, ["resume", str(run), "--set", "strategy.num_rounds=4"])
    assert done.exit_code == 0, done.output
    assert json.loads((run / "summary.json").read_text())["rounds"] == 4
    assert (run / "report.html").is_file()


def test_federate_goes_on_with_more_rounds_where_its_arguments_say_so(tmp_path: Path):
    def rows(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(20, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(20) % 2

    def federated(name: str, num_rounds: int) -> fedelta.Result:
        return fedelta.federate(
            torch.nn.Linear(4, 2), {"ann": rows(0), "george": rows(1)}, rows(2), tuning="full", class_names=("a", "b"),
            strategy=fedelta.FedAvg(num_rounds=num_rounds), out=tmp_path / name, resume=True,
        )  # fmt: skip

    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = federated("whole", 4)
        torch.manual_seed(0)
        federated("run", 2)
        torch.manual_seed(0)
        result = federated("run", 4)
    assert_same_bits(whole.params, result.params)
    assert (whole.path / "config.toml").read_bytes() == (result.path / "config.toml").read_bytes()


def kill(run: Path, at: int) -> None:
    """Goes on with a run, and ends this process in the middle of its `at`-th call that changes the disk."""
    calls = 0

    def counting(original: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **named)

        return counted

    for name in ("replace", "fsync"):
        setattr(os, name, counting(getattr(os, name)))
    longer(run, "strategy.num_rounds=2")


def check_kill(whole: fedelta.Result, start: Path, at: int) -> tuple[int, tuple[bool, ...]]:
    """Exit status of a run that was killed while it went on, and its state; it is resumed and compared."""
    run = shutil.copytree(start, start.with_name(f"killed-{at}"))
    status = in_child(lambda: kill(run, at))
    is_written_down = (run / AMENDMENT).exists()
    results = [(run / name).exists() for name in ("summary.json", "adapter", "after-1-rounds/adapter")]
    state = (is_written_down, *results, "num_rounds = 2" in (run / "config.toml").read_text())
    # With the same words again or, once the change is written down, without.
    overrides = ("strategy.num_rounds=2",) if at % 2 or not is_written_down else ()
    result = Experiment.from_run(run, overrides=overrides).resume(run, writes_page=False)
    assert_same_bits(whole.params, result.params)
    for name in FILES:
        assert (whole.path / name).read_bytes() == (run / name).read_bytes(), (at, name)
    assert (run / "after-1-rounds/summary.json").read_bytes() == (start / "summary.json").read_bytes()
    assert len(changes_of(run)) == 1
    return status, state


@pytest.fixture(scope="module")
def long_and_short(tmp_path_factory: pytest.TempPathFactory) -> tuple[fedelta.Result, Path]:
    """A run of two rounds, and a finished one of one round that is to become as long."""
    folder = tmp_path_factory.mktemp("kills")
    whole = Experiment.from_toml(write_small(folder), ["strategy.num_rounds=2"]).run(folder / "whole")
    return whole, finished(folder, "strategy.num_rounds=1", name="start")


# The change is written down with the calls 1 to 3; 5 moves the results, and 18 writes the configuration.
@pytest.mark.parametrize("at", [2, 5, 18])
def test_a_kill_while_a_run_goes_on_loses_nothing(long_and_short: tuple[fedelta.Result, Path], at: int):
    status, (is_written_down, *_) = check_kill(*long_and_short, at)
    assert status == -signal.SIGKILL
    assert is_written_down == (at > 2)


@pytest.mark.slow
def test_a_kill_at_any_moment_while_a_run_goes_on_loses_nothing(long_and_short: tuple[fedelta.Result, Path]):
    states, at, status = set(), 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        at += 1
        status, state = check_kill(*long_and_short, at)
        states.add(state)
    assert status == 0
    assert len(states) > 4  # before the change is written down, while results move, with the new configuration, after
