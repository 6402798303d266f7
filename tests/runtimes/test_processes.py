"""Worker processes give the bits of one process, for everything that a configuration can ask for."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.builders import assert_same_bits
from tests.golden.configurations import _EXITS as EXITS
from tests.plugins.conftest import own_registries
from tests.small import CONVOLUTIONAL, SMALL, stop_after, write_small
from torch import Tensor

from fedelta.assembly import local
from fedelta.assembly.run import Assembly, assemble
from fedelta.config import load_config
from fedelta.engine import evaluator, prefix
from fedelta.engine.prefix import CachedInputs
from fedelta.errors import PluginError
from fedelta.experiment import Experiment
from fedelta.federation.base import Standing
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.plugins import load_plugin
from fedelta.runtimes import processes, settings
from fedelta.runtimes.pool import Pool

FULL = ("tuning.name=full", "tuning.r=")
STEPS = ("client.local_epochs=", "client.local_steps=2")
WINDOWS = ("strategy.name=fedlama", "strategy.tau=2", "strategy.num_rounds=4", "client.local_epochs=")
PRIVATE = ("privacy.noise_multiplier=0.5", *STEPS)
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "LoRA, float16": (SMALL, ("strategy.clients_per_round=5",)),
    "one lane": (SMALL, ("runtime.lanes=1",)),
    "full fine-tuning": (SMALL, (*FULL, "tuning.target_modules=")),
    "a head on cached features": (SMALL, ("tuning.name=head", "tuning.r=")),
    "int8 with its residual": (SMALL, ("codec.name=int8",)),
    "integers rounded at random": (SMALL, ("codec.name=int4", "codec.rounding=stochastic")),
    "places drawn at random": (SMALL, ("codec.up.name=random-k", "codec.up.k=0.1", "codec.down.name=sign")),
    "ranks that differ": (
        SMALL, ("aggregation.name=hlora", "tuning.rank_by_client.ranks=[1, 2]", "strategy.clients_per_round=5"),
    ),
    "dropout": (SMALL, ("tuning.name=prompt", "tuning.r=", "tuning.dropout=0.3")),
    "adamw and a schedule": (SMALL, ("client.optimizer.name=adamw", "client.schedule.name=cosine")),
    "crops and flips": (SMALL, ("augmentation.crop_padding=1", "augmentation.flip=true", *STEPS)),
    "SCAFFOLD": (SMALL, ("strategy.name=scaffold", "client.optimizer.name=sgd", "client.optimizer.momentum=0.0")),
    "FedLAMA": (CONVOLUTIONAL, ("tuning.name=full", *WINDOWS)),
    "the median of FedLAMA": (SMALL, ("strategy.mean.name=median", *WINDOWS)),
    "norms that stay": (
        CONVOLUTIONAL, ("model.batch_norm=local", "stability.dropout_fraction=0.3", "strategy.num_rounds=3"),
    ),
    "two depths": (EXITS, ()),
    "random exits": (EXITS, ("exits.train=random",)),
    "private examples": (SMALL, (*PRIVATE, "privacy.unit=example", "runtime.lanes=4", "client.batch_size=4")),
    "private clients": (SMALL, (*PRIVATE, "privacy.unit=client")),
    "local noise": (SMALL, (*PRIVATE, "privacy.unit=local", "codec.name=int8")),
    "FedProx and a deadline": (
        SMALL, ("local_rule.name=fedprox", "stability.examples_per_second=4", "stability.deadline_seconds=20"),
    ),
}  # fmt: skip
PLUGIN = '''
from typing import Literal
from torch import Tensor
from fedelta.settings import Settings


class Failing(Settings):
    """Fails in the first step."""

    name: Literal["failing"] = "failing"

    def correct(self, grads_KP: Tensor, values_KP: Tensor, anchors_KP: Tensor) -> None:
        raise ValueError("no gradient today")
'''


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(settings, "available_cores", lambda: 2)
    with own_registries():
        yield


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def assembled(folder: Path, text: str, *overrides: str) -> Assembly:
    return assemble(load_config(write_small(folder, text=text), ["strategy.num_rounds=2", *overrides]))


def rounds(assembly: Assembly, at_round: Callable[[RoundOutcome], object] = id) -> list[RoundOutcome]:
    standing = Standing(assembly.params, assembly.strategy.init(assembly.params, assembly.spec))
    outcomes = []
    with assembly.at_work():
        for outcome in federate(assembly.federation, standing):
            at_round(outcome)
            outcomes.append(outcome)
    return outcomes


def workers_of(assembly: Assembly) -> list[int]:
    pool = assembly.processes._pool
    return [] if pool is None else pool.process_ids


def assert_same_rounds(some: list[RoundOutcome], others: list[RoundOutcome]) -> None:
    for one, other in zip(some, others, strict=True):
        assert_same_bits(one.params, other.params)
        assert_same_bits(one.state, other.state)
        mirrors = [outcome.mirror.to_state() for outcome in (one, other)]
        assert_same_bits(mirrors[0][0], mirrors[1][0])
        assert mirrors[0][1] == mirrors[1][1]
        of_tensors = ("params", "state", "mirror")
        values = [{k: v for k, v in vars(outcome).items() if k not in of_tensors} for outcome in (one, other)]
        assert values[0] == values[1]


def kept(assembly: Assembly, folder: Path) -> dict[str, bytes]:
    """What clients keep, as it is on the disk."""
    folder.mkdir()
    assembly.federation.runtime.snapshot(folder, 1)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", CASES)
def test_two_workers_give_the_bits_of_one_process(name: str, tmp_path: Path):
    text, overrides = CASES[name]
    alone = assembled(tmp_path, text, "runtime.name=simulation", *overrides)
    shared = assembled(tmp_path, text, "runtime.name=processes", "runtime.workers=2", *overrides)
    working: list[list[int]] = []
    expected = rounds(alone)
    assert_same_rounds(rounds(shared, lambda _: working.append(workers_of(shared))), expected)
    [pair] = {tuple(process_ids) for process_ids in working if process_ids}  # the same in every round
    assert len(pair) == 2
    assert kept(shared, tmp_path / "shared") == kept(alone, tmp_path / "alone")


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_bit(workers: int, tmp_path: Path, monkeypatch):
    overrides = ("strategy.clients_per_round=5", "runtime.lanes=2")
    expected = rounds(assembled(tmp_path, SMALL, "runtime.name=simulation", *overrides))
    assembly = assembled(tmp_path, SMALL, "runtime.name=processes", *overrides)
    assembly.processes._workers = processes.replace(assembly.processes._workers, most=workers)
    assert_same_rounds(rounds(assembly), expected)


def test_workers_that_start_in_the_middle_of_a_round_change_no_bit(tmp_path: Path, monkeypatch, two_threads):
    monkeypatch.setattr(processes, "_WORTH_SECONDS", -1e6)  # after the first pack
    overrides = ("strategy.clients_per_round=5", "runtime.lanes=2")
    expected = rounds(assembled(tmp_path, SMALL, "runtime.name=simulation", *overrides))
    assembly = assembled(tmp_path, SMALL, "runtime.name=auto", *overrides)
    working: list[int] = []
    assert_same_rounds(rounds(assembly, lambda _: working.append(len(workers_of(assembly)))), expected)
    assert working == [2, 2]


def test_a_worker_that_is_killed_in_a_round_changes_no_bit(tmp_path: Path, caplog):
    overrides = ("strategy.name=scaffold", "client.optimizer.name=sgd", "client.optimizer.momentum=0.0")
    expected = rounds(assembled(tmp_path, SMALL, "runtime.name=simulation", *overrides))
    assembly = assembled(tmp_path, SMALL, "runtime.name=processes", *overrides)
    original = assembly.site.engine.train
    file = tmp_path / "killed"

    def train(jobs: Any, lr: float, round: int) -> Iterator[Any]:
        if round == 2 and not file.exists():
            file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(jobs, lr, round)

    assembly.site.engine.train = train
    assert_same_rounds(rounds(assembly), expected)
    assert "SIGKILL" in caplog.text


def test_workers_share_the_evaluation_and_its_cached_features(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(evaluator, "_BATCH_ROWS", {"cpu": 8})
    overrides = ("tuning.name=head", "tuning.r=", "runtime.lanes=1")
    expected = rounds(assembled(tmp_path, SMALL, "runtime.name=simulation", *overrides))
    assembly = assembled(tmp_path, SMALL, "runtime.name=processes", *overrides)
    monkeypatch.setattr(processes, "sums_of", None)  # not in this process
    assert_same_rounds(rounds(assembly), expected)
    assert expected[0].evaluation is not None
    features = assembly.engine.evaluator.cached(assembly.data.test).inputs
    assert features._ready.all()


HEAD = ("tuning.name=head", "tuning.r=", "strategy.clients_per_round=5")


@pytest.mark.parametrize("name", ["processes", "auto"])
def test_workers_fill_the_cache_before_the_first_pack(name: str, tmp_path: Path, monkeypatch, two_threads):
    monkeypatch.setattr(prefix, "_CHUNK", {"cpu": 4})
    monkeypatch.setattr(processes, "_WORTH_FILLING_SECONDS", -1e6)
    expected = rounds(assembled(tmp_path, SMALL, "runtime.name=simulation", *HEAD))
    assembly = assembled(tmp_path, SMALL, f"runtime.name={name}", *HEAD)
    file, compute = tmp_path / "computed", CachedInputs._compute

    def note(inputs: CachedInputs, rows: Tensor) -> dict[str, Tensor]:
        with file.open("a") as text:
            text.write(f"{os.getpid() == parent} {len(rows)}\n")
        return compute(inputs, rows)

    parent = os.getpid()
    monkeypatch.setattr(CachedInputs, "_compute", note)
    assert_same_rounds(rounds(assembly), expected)
    here = [int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("True")]
    # One row tells how much memory the cache of the test data takes. Unasked, the first chunk tells what it costs.
    assert sorted(here) == ([1] if name == "processes" else [1, 4])
    assert workers_of(assembly) == []


@pytest.mark.parametrize(("worth_seconds", "stay"), [(-1e6, True), (1e6, False)])
def test_workers_that_filled_the_cache_stay_if_training_needs_them(
    worth_seconds: float, stay: bool, tmp_path: Path, monkeypatch, two_threads
):
    monkeypatch.setattr(prefix, "_CHUNK", {"cpu": 4})
    monkeypatch.setattr(processes, "_WORTH_FILLING_SECONDS", -1e6)
    monkeypatch.setattr(processes, "_WORTH_SECONDS", worth_seconds)
    hired: list[Pool] = []
    monkeypatch.setattr(processes, "Pool", lambda *args: hired.append(Pool(*args)) or hired[-1])
    assembly = assembled(tmp_path, SMALL, "runtime.name=auto", "runtime.lanes=2", "evaluate_every=2", *HEAD)
    working: list[bool] = []
    rounds(assembly, lambda _: working.append(bool(workers_of(assembly))))
    assert working == [stay, stay]
    # One that stays does all; otherwise one for each round's new clients, and one for the test data.
    assert len(hired) == (1 if stay else 3)
    assert not any(pool.process_ids for pool in hired)


def test_a_run_says_how_many_workers_it_had_and_leaves_none(tmp_path: Path):
    ids: list[int] = []
    experiment = Experiment.from_toml(write_small(tmp_path), ["runtime.name=processes", "runtime.lanes=1"])
    result = experiment.run(tmp_path / "run", on_round=lambda *_: ids.extend(workers_of(experiment.assembly)))
    timings = [json.loads(line) for line in (result.path / "timings.jsonl").read_text().splitlines()]
    assert [len(timing["worker_peak_memory_bytes"]) for timing in timings] == [2, 2, 2]
    assert len(result.summary["worker_peak_memory_bytes"]) == 2
    assert result.summary["worker_peak_memory_bytes"][0] == max(t["worker_peak_memory_bytes"][0] for t in timings)
    assert len(set(ids)) == 2
    assert not any(Path(f"/proc/{process_id}").exists() for process_id in ids)
    assert "worker" not in (result.path / "rounds.jsonl").read_text()


def test_ctrl_c_leaves_no_worker_and_a_resumed_run_may_have_none(tmp_path: Path):
    ids: list[int] = []
    overrides = ["strategy.name=scaffold", "client.optimizer.name=sgd", "client.optimizer.momentum=0.0"]
    path = write_small(tmp_path)
    experiment = Experiment.from_toml(path, ["runtime.name=processes", *overrides])

    def stop(outcome: Any, ledger: Any) -> None:
        ids.extend(workers_of(experiment.assembly))
        stop_after(2)(outcome, ledger)

    with pytest.raises(KeyboardInterrupt):
        experiment.run(tmp_path / "run", on_round=stop)
    assert ids
    assert not any(Path(f"/proc/{process_id}").exists() for process_id in ids)
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace('name = "processes"', 'name = "simulation"'))
    resumed = Experiment.from_run(tmp_path / "run").resume(tmp_path / "run")
    undisturbed = Experiment.from_toml(path, ["runtime.name=simulation", *overrides]).run(tmp_path / "alone")
    assert_same_bits(resumed.params, undisturbed.params)
    assert (resumed.path / "rounds.jsonl").read_bytes() == (undisturbed.path / "rounds.jsonl").read_bytes()


def test_an_error_of_a_plug_in_names_it_as_in_one_process(tmp_path: Path):
    (tmp_path / "failing.py").write_text(PLUGIN)
    load_plugin(tmp_path / "failing.py")
    messages = []
    for name in ("simulation", "processes"):
        with pytest.raises((PluginError, ValueError)) as raised:
            rounds(assembled(tmp_path, SMALL, f"runtime.name={name}", "local_rule.name=failing"))
        messages.append(str(raised.value))
    assert "no gradient today" in messages[0]
    assert messages[1].startswith("plug-in 'failing.py' failed in `correct`, line 13: ValueError: no gradient today")


def test_nothing_but_the_rounds_of_a_run_starts_workers(tmp_path: Path):
    assembly = assembled(tmp_path, SMALL, "runtime.name=processes")
    standing = Standing(assembly.params, assembly.strategy.init(assembly.params, assembly.spec))
    next(federate(assembly.federation, standing))
    assert workers_of(assembly) == []


@pytest.mark.parametrize(
    ("overrides", "has_workers"),
    [
        (["runtime.name=auto"], True),
        (["runtime.name=simulation"], False),
        (["runtime.name=auto", "strategy.clients_per_round=1"], False),  # one pack
    ],
)
def test_a_run_may_have_workers_unless_it_is_told_not_to(overrides, has_workers, tmp_path: Path, two_threads):
    assert (assembled(tmp_path, SMALL, *overrides).processes is not None) == has_workers


def test_a_process_with_one_thread_has_workers_only_if_they_are_asked_for(tmp_path: Path):
    # Such as those of a comparison, which fill the cores already.
    assert torch.get_num_threads() == 1
    assert assembled(tmp_path, SMALL, "runtime.name=auto").processes is None
    assert assembled(tmp_path, SMALL, "runtime.name=processes").processes is not None


def test_workers_that_would_have_nothing_to_do_are_told_of(tmp_path: Path, caplog):
    assembled(tmp_path, SMALL, "runtime.name=processes", "strategy.clients_per_round=1")
    assert "clients train in this process: all clients of a round train together (`runtime.lanes`)" in caplog.text


def test_the_callers_objects_stay_in_this_process_where_it_cannot_be_copied(tmp_path: Path, caplog, monkeypatch):
    monkeypatch.setattr(local, "can_copy", lambda device: False)
    config = load_config(write_small(tmp_path), ["runtime.name=processes"])
    data = assembled(tmp_path, SMALL, "runtime.name=simulation").data
    assert assemble(config, data=data).processes is None
    assert "only a copy of it has your model and data" in caplog.text


@pytest.mark.parametrize("unit", ["example", "local"])
def test_secret_noise_is_the_same_in_workers_and_another_in_each_run(unit: str, tmp_path: Path):
    settings = (*PRIVATE, f"privacy.unit={unit}", "privacy.randomness=secure", "strategy.num_rounds=1")
    ends = {}
    for number, (name, key) in enumerate((("simulation", b"k" * 32), ("processes", b"k" * 32), ("processes", None))):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = load_config(write_small(folder), [*settings, f"runtime.name={name}"])
        [ends[number]] = rounds(assemble(config, key=key))
    assert_same_rounds([ends[1]], [ends[0]])
    assert not torch.equal(ends[1].params["classifier.bias"], ends[2].params["classifier.bias"])


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["example", "local"])
def test_workers_that_build_their_site_themselves_have_the_secret_noise_of_the_run(unit: str, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "can_copy", lambda device: False)
    settings = (*PRIVATE, f"privacy.unit={unit}", "privacy.randomness=secure")
    alone, shared = (
        assemble(load_config(write_small(tmp_path), [*settings, f"runtime.name={name}"]), key=b"k" * 32)
        for name in ("simulation", "processes")
    )
    assert_same_rounds(rounds(shared), rounds(alone))


@pytest.mark.slow
def test_workers_that_build_their_site_themselves_give_the_same_bits(tmp_path: Path, monkeypatch):
    # As for several GPUs, and where processes cannot be copied.
    monkeypatch.setattr(local, "can_copy", lambda device: False)
    expected = rounds(assembled(tmp_path, SMALL, "runtime.name=simulation"))
    assembly = assembled(tmp_path, SMALL, "runtime.name=processes")
    assert_same_rounds(rounds(assembly), expected)
