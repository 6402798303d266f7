"""Whole runs of a small convolutional network: what travels, what stays, and resuming with what clients keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.builders import assert_same_bits, assert_same_memories, kept, memories_in
from tests.report.synthetic import history_of
from tests.small import CONVOLUTIONAL, stop_after, write_small

from fedelta.errors import AdapterError, CheckpointError, ConfigError, InputError, ModelError, RoundError, RunError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment, Result
from fedelta.inference.predict import Predictor
from fedelta.inspection import inspect
from fedelta.models.hub import build
from fedelta.record.checkpoint import load
from fedelta.record.rundir import RunDirectory


def experiment(folder: Path, *overrides: str) -> Experiment:
    return Experiment.from_toml(write_small(folder, text=CONVOLUTIONAL), overrides)


def run(folder: Path, *overrides: str) -> Result:
    return experiment(folder, *overrides).run(folder / "run")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """An undisturbed run under the default policy; for tests that only read it."""
    return run(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The same in which every client keeps its norms; for tests that only read it."""
    return run(tmp_path_factory.mktemp("local"), "model.batch_norm=local")


def test_files_of_a_run_with_local_norms_agree(local: Result):
    assert history_of(local.path).misfits == ()
    assert json.loads((local.path / "confusion.json").read_text())["num_models"] > 1


def groups_sent(result: Result) -> set[str]:
    rows = [json.loads(line) for line in (result.path / "ledger.jsonl").read_text().splitlines()[1:]]
    return {group for row in rows for group in row["groups"]}


@pytest.mark.parametrize("name", ["full", "head", "bias", "parallel", "lora", "parallel+lora"])
def test_every_method_runs_and_its_adapter_gives_the_same_accuracy(name: str, tmp_path):
    overrides = ["strategy.num_rounds=1", f"tuning.name={name}"] + (
        ['tuning.target_modules="all-conv"'] if "lora" in name else []
    )
    result = run(tmp_path, *overrides)
    assert evaluate_adapter(result.path).measures["accuracy"] == result.measures["accuracy"]
    assert result.summary["tuned_parameters"] == result.assembly.spec.num_parameters


def test_running_statistics_travel_and_move_with_the_mean_of_the_clients(plain: Result):
    spec = plain.assembly.spec
    assert groups_sent(plain) == set(spec.groups)
    assert spec.tensors["bn1.running_mean"].group == spec.tensors["conv1.parallel"].group
    moved = [name for name in spec if not torch.equal(plain.params[name], plain.assembly.params[name])]
    assert set(moved) == set(spec)
    tensors = sum(tensor.numel for tensor in spec.tensors.values())
    payloads = [json.loads(line) for line in (plain.path / "ledger.jsonl").read_text().splitlines()[1:]]
    # Everything in float32, statistics included; tuned parameters do not count them.
    assert {row["tensor_bytes"] for row in payloads} == {4 * tensors}
    assert spec.num_parameters < tensors


def test_local_norms_never_travel_and_differ_between_clients(local: Result):
    spec, site = local.assembly.spec, local.assembly.site
    assert not [group for group in groups_sent(local) if "bn" in group or "shortcut" in group]
    for name in spec.kept:
        assert torch.equal(local.params[name], local.assembly.params[name])
    lines = (local.path / "rounds.jsonl").read_text().splitlines()
    asked = {client for line in lines for client in json.loads(line)["cohort"]}
    assert sorted(kept(site)) == sorted(asked)
    first, second, *_ = (kept(site)[client] for client in sorted(asked))
    assert list(first) == list(spec.kept)
    assert all(not torch.equal(first[name], second[name]) for name in spec.kept)


def test_the_accuracy_under_local_norms_is_the_mean_over_the_clients(local: Result):
    engine, test = local.assembly.engine, local.assembly.data.test
    accuracies = [
        engine.evaluator.evaluate(local.params | norms, test).measures["accuracy"]
        for norms in kept(local.assembly.site).values()
    ]
    assert local.measures["accuracy"] == pytest.approx(sum(accuracies) / len(accuracies))
    assert len(set(accuracies)) > 1


def answers(predictor: Predictor) -> list[float]:
    images = list(torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    return [prediction.probability for prediction in predictor.predict(images)]


def test_a_client_predicts_with_its_own_norms(local: Result):
    first, second, *_ = sorted(kept(local.assembly.site))
    assert answers(local.predictor(first)) != answers(local.predictor(second))
    assert answers(Predictor.open(local.path, first)) == pytest.approx(answers(local.predictor(first)), abs=1e-5)
    with pytest.raises(InputError, match="there is no client 99, expected one of 6 clients, 0 to 5"):
        local.predictor(99)


def test_a_run_with_a_model_for_each_client_asks_whose(local: Result):
    with pytest.raises(RunError, match="has one model per client, because clients keep their norms") as caught:
        Predictor.open(local.path)
    assert caught.value.hint.startswith("clients with a model: client ")
    with pytest.raises(InputError, match="there is no client 77, expected one of 6 clients, 0 to 5"):
        Predictor.open(local.path, 77)
    assert "Every client keeps its own norms" in (local.path / "adapter/README.md").read_text()


def test_an_answer_by_one_model_reads_nothing_that_clients_keep(tmp_path):
    path = run(tmp_path, "strategy.name=scaffold", "strategy.num_rounds=1").path
    files = sorted((path / "checkpoint/clients").glob("*.safetensors"))
    assert files
    for file in files:
        file.write_bytes(b"damaged")
    assert Predictor.open(path).class_names
    with pytest.raises(CheckpointError, match=r"the clients' memory file .* cannot be read"):
        Predictor.open(path, int(files[0].name.partition("-")[0]))


def test_a_client_of_a_run_with_one_model_has_none_of_its_own(plain: Result):
    with pytest.raises(RunError, match="client 0 has no model"):
        Predictor.open(plain.path, 0)


@pytest.mark.parametrize("policy", ["local", "group"])  # the default is among the methods above
def test_a_run_that_is_evaluated_again_has_its_accuracy(policy: str, tmp_path):
    result = run(tmp_path, f"model.batch_norm={policy}", "tuning.name=full", "strategy.num_rounds=1")
    assert evaluate_adapter(result.path).measures["accuracy"] == result.measures["accuracy"]


def test_a_server_step_beyond_the_mean_leaves_statistics_at_the_mean(tmp_path):
    # One round from the same start: trained tensors go twice as far, statistics to the mean of the clients.
    plain = experiment(tmp_path, "strategy.num_rounds=1").run(tmp_path / "plain")
    twice = experiment(tmp_path, "strategy.num_rounds=1", "strategy.server_lr=2.0").run(tmp_path / "twice")
    start = plain.assembly.params
    for name, tensor in plain.assembly.spec.tensors.items():
        factor = 2.0 if tensor.trained else 1.0
        expected = start[name] + factor * (plain.params[name] - start[name])
        torch.testing.assert_close(twice.params[name], expected, rtol=1e-4, atol=1e-6)


def test_a_client_that_diverges_keeps_the_norms_it_had(tmp_path):
    # The codec cannot hold what a learning rate of 1e30 makes, so every reply is refused and nobody keeps anything.
    broken = experiment(tmp_path, "model.batch_norm=local", "client.lr=1e30", "codec.name=float16")
    with pytest.raises(RoundError, match="0 of 3 replies are usable"):
        broken.run(tmp_path / "run")
    assert kept(broken.assembly.site) == {}


def test_what_a_client_keeps_holds_no_other_memory(local: Result):
    for norms in kept(local.assembly.site).values():
        for tensor in norms.values():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * 4


@pytest.mark.parametrize("policy", ["average", "local", "group"])
def test_a_stopped_run_resumes_to_the_same_bits(policy: str, plain: Result, local: Result, tmp_path):
    undisturbed = {"average": plain, "local": local}.get(policy) or run(tmp_path, f"model.batch_norm={policy}")
    with pytest.raises(KeyboardInterrupt):
        experiment(tmp_path, f"model.batch_norm={policy}").run(tmp_path / "stopped", on_round=stop_after(2))
    resumed = Experiment.from_run(tmp_path / "stopped").resume(tmp_path / "stopped")
    for name in ("rounds.jsonl", "ledger.jsonl"):
        assert (resumed.path / name).read_bytes() == (undisturbed.path / name).read_bytes()
    left, right = (load(RunDirectory.open(result.path).checkpoint) for result in (undisturbed, resumed))
    assert_same_bits(left.params, right.params)
    assert_same_memories(undisturbed.path, resumed.path)
    assert bool(memories_in(resumed.path)) == (policy == "local")


def test_the_number_of_lanes_changes_nothing_beyond_rounding(tmp_path):
    beside, *others = (
        experiment(tmp_path, f"runtime.lanes={lanes}", "strategy.num_rounds=2").run(tmp_path / f"{lanes}")
        for lanes in (3, 1, 2)
    )
    for result in others:
        for name, value in beside.params.items():
            torch.testing.assert_close(result.params[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("policy", ["average", "group"])
def test_an_adapter_of_each_policy_gives_the_model_of_the_run(policy: str, tmp_path):
    result = run(tmp_path, f"model.batch_norm={policy}", "strategy.num_rounds=1")
    assert answers(Predictor.open(result.path)) == pytest.approx(answers(result.predictor()), abs=1e-5)


@pytest.mark.parametrize("policy", ["local", "group"])
def test_a_policy_with_a_method_that_trains_no_norm_is_refused(policy: str, tmp_path):
    overrides = (f"model.batch_norm={policy}", "tuning.name=head")
    for act in (lambda: run(tmp_path, *overrides), lambda: inspect(experiment(tmp_path, *overrides).config)):
        with pytest.raises(ConfigError, match=f"is '{policy}', but tuning method 'head' trains no norm"):
            act()
    assert not (tmp_path / "run").exists()


def test_a_backbone_of_ones_own_says_its_policy_itself(tmp_path):
    config = experiment(tmp_path, "model.batch_norm=local").config
    backbone = build(config.model.model_copy(update={"batch_norm": "average"}), tuple("0123456789"), seed=0)
    with pytest.raises(ConfigError, match="is 'local', but the backbone that was given has 'average'"):
        Experiment(config, backbone=backbone).run(tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("tuning.name=adapter",), "tuning method 'adapter' does not fit SmallResNet"),
        (("tuning.name=prompt",), "tuning method 'prompt' does not fit SmallResNet"),
        (
            ("tuning.name=lora", 'tuning.target_modules=["q"]'),
            "entry 'q' matches no linear or convolutional layer of SmallResNet",
        ),
        (("tuning.name=lora", 'tuning.target_modules=["conv3"]'), "did you mean 'conv"),
        (("tuning.name=lora", 'tuning.target_modules="all-conv"', "tuning.r=9"), "rank 9 is too large for `conv1`"),
    ],
)
def test_a_method_that_does_not_fit_ends_before_any_training(overrides: tuple[str, ...], message: str, tmp_path):
    with pytest.raises(ModelError) as caught:
        run(tmp_path, *overrides)
    assert message in caught.value.message
    assert not (tmp_path / "run").exists()


def test_an_adapter_for_another_network_is_refused_before_any_training(plain: Result, tmp_path):
    with pytest.raises(AdapterError, match="does not fit this SmallResNet"):
        experiment(tmp_path, f"model.adapter={plain.path / 'adapter'}", "model.architecture.widths=[8,24]").run(
            tmp_path / "other"
        )
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["parallel", "lora+bias"])
def test_a_run_can_start_from_the_adapter_of_another_by_the_name_of_its_method(name: str, tmp_path):
    lora = ['tuning.target_modules="all-conv"', "tuning.r=2"] if "lora" in name else []
    result = run(tmp_path, "strategy.num_rounds=1", f"tuning.name={name}", *lora)
    start = f"model.adapter={result.path / 'adapter'}"
    more = experiment(tmp_path, start, f"tuning.name={name}")
    assert_same_bits(more.assembly.params, result.params)
    if lora:
        with pytest.raises(ConfigError, match=r"`tuning.r` is 3, but the adapter .* has 2"):
            experiment(tmp_path, start, f"tuning.name={name}", "tuning.r=3").assembly  # noqa: B018
        with pytest.raises(ConfigError, match=r"`tuning.name` is 'adapter\+bias', but the adapter .* has 'lora\+bias'"):
            experiment(tmp_path, start, "tuning.name=bias+adapter").assembly  # noqa: B018
