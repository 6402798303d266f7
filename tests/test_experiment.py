"""The whole of it, from a configuration to a run directory and back, on the real digits."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.small import write_small

import fedelta
from fedelta.config import load_config
from fedelta.errors import AdapterError, ConfigError, RoundError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment
from fedelta.inspection import inspect
from fedelta.models.hub import build
from fedelta.record import files

SUMMARY_KEYS = {
    "final_accuracy",
    "best_accuracy",
    "rounds",
    "tuned_parameters",
    "total_parameters",
    "uplink_bytes",
    "downlink_bytes",
    "uplink_tensor_bytes",
    "downlink_tensor_bytes",
    "full_model_bytes",
    "wall_seconds",
    "peak_memory_bytes",
}


def bits(path: Path) -> tuple[bytes, bytes, bytes]:
    names = ("rounds.jsonl", "ledger.jsonl", "adapter/adapter_model.safetensors")
    first, second, third = ((path / name).read_bytes() for name in names)
    return first, second, third


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    return Experiment.from_toml(write_small(folder)).run(folder / "run")


def test_a_run_directory_holds_everything_a_run_leaves_behind(result):
    names = {str(path.relative_to(result.path)) for path in result.path.rglob("*") if path.is_file()}
    assert names >= {
        "config.toml",
        "rounds.jsonl",
        "ledger.jsonl",
        "timings.jsonl",
        "checkpoint/state.safetensors",
        "summary.json",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "environment.json",
        "citations.bib",
    }
    assert json.loads((result.path / "summary.json").read_text()).keys() >= SUMMARY_KEYS


def test_every_byte_of_the_summary_is_in_the_ledger(result):
    rows = [json.loads(line) for line in (result.path / "ledger.jsonl").read_text().splitlines()]
    for direction, key in (("up", "uplink"), ("down", "downlink")):
        travelled = [row for row in rows if row["round"] > 0 and row["direction"] == direction]
        assert len(travelled) == 3 * 3
        assert sum(row["payload_bytes"] for row in travelled) == result.summary[f"{key}_bytes"]
        assert sum(row["tensor_bytes"] for row in travelled) == result.summary[f"{key}_tensor_bytes"]
    # Two layers with LoRA of rank 2 on q and v of width 32, and a head of 10 classes; two bytes each in float16.
    tuned = 2 * 2 * (2 * 32 + 32 * 2) + 10 * 32 + 10
    assert result.summary["tuned_parameters"] == tuned
    assert result.summary["uplink_tensor_bytes"] == 9 * 2 * tuned
    assert result.summary["full_model_bytes"] == 18 * 4 * result.summary["total_parameters"]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(result, tmp_path):
    config = write_small(tmp_path)
    assert bits(Experiment.from_toml(config).run(tmp_path / "same").path) == bits(result.path)
    assert bits(Experiment.from_toml(config, ["seed=4"]).run(tmp_path / "other").path) != bits(result.path)


def test_the_number_of_lanes_changes_results_within_float_tolerance_only(result, tmp_path):
    # float32 on the wire: a rounding to float16 would turn a last bit into a thousandth.
    config, exact = write_small(tmp_path), "codec.name=float32"
    one, three = (
        Experiment.from_toml(config, [exact, f"runtime.lanes={lanes}"]).run(tmp_path / f"{lanes}") for lanes in (1, 3)
    )
    for name, tensor in one.params.items():
        torch.testing.assert_close(three.params[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_run_from_objects_is_the_run_from_the_file(result, tmp_path):
    config = fedelta.Config(
        seed=3,
        model=fedelta.ModelSource(
            architecture={
                "model_type": "vit",
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "image_size": 16,
                "patch_size": 8,
            }
        ),
        tuning=fedelta.Lora(r=2),
        data=fedelta.DataSource(source="digits", max_train_examples=120, max_test_examples=60),
        partition=fedelta.Dirichlet(num_clients=6, alpha=0.5, min_size=4),
        strategy=fedelta.FedAvg(clients_per_round=3, num_rounds=3),
        client=fedelta.ClientSettings(local_epochs=1, batch_size=8, lr=0.1),
        codec=fedelta.Channel(name="float16"),
    )
    assert bits(fedelta.Experiment(config).run(tmp_path / "run").path) == bits(result.path)


def test_the_saved_adapter_evaluates_to_the_accuracy_of_the_run(result, tmp_path):
    assert evaluate_adapter(result.path).measures["accuracy"] == result.measures["accuracy"]
    result.save_adapter(tmp_path / "saved")
    again = evaluate_adapter(result.path / "config.toml", tmp_path / "saved")
    assert again.measures["accuracy"] == result.measures["accuracy"]


def test_a_run_can_start_from_an_adapter(result, tmp_path):
    config = write_small(tmp_path)
    overrides = [f"model.adapter={json.dumps(str(result.path / 'adapter'))}", "strategy.num_rounds=1"]
    assembly = Experiment.from_toml(config, overrides).assembly
    assert all(torch.equal(assembly.params[name], tensor) for name, tensor in result.params.items())
    resumed = Experiment.from_toml(config, overrides).run(tmp_path / "run")
    assert Experiment.from_run(resumed.path).resume(resumed.path).measures["accuracy"] == resumed.measures["accuracy"]


def test_an_adapter_with_another_rank_than_the_configuration_is_refused(result, tmp_path):
    adapter = f"model.adapter={json.dumps(str(result.path / 'adapter'))}"
    with pytest.raises(ConfigError, match=r"`tuning\.r` is 4, but the adapter .* has 2"):
        Experiment.from_toml(write_small(tmp_path), [adapter, "tuning.r=4"]).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_predictor_gives_probabilities_for_every_class(result):
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for prediction in result.predictor().predict(list(images)):
        assert sum(prediction.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        assert prediction.probability == max(prediction.probabilities.values())


def test_a_learning_rate_that_is_too_large_ends_with_a_hint_and_not_with_nan(tmp_path):
    overrides = ["client.lr=1e30", "client.local_epochs=4", "tuning.name=full"]
    with pytest.raises(RoundError, match=r"round 1: 0 of 3 replies are usable(.|\n)*hint: .*lower `client\.lr`"):
        Experiment.from_toml(write_small(tmp_path), overrides).run(tmp_path / "run")
    assert (tmp_path / "run" / "rounds.jsonl").read_text() == ""


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_checkpoint_before_it_and_the_run_resumes(tmp_path, monkeypatch, result, error):
    experiment = Experiment.from_toml(write_small(tmp_path))
    replace, calls = files.os.replace, []

    def failing(source: str, target: str) -> None:
        calls.append(target)
        # The first renames make the run directory; then every round has one, its checkpoint.
        if sum("state.safetensors" in str(name) for name in calls) == 3:
            raise error
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", failing)
        with pytest.raises(type(error)):
            experiment.run(tmp_path / "run")
    assert not list(tmp_path.rglob("*.tmp*"))
    Experiment.from_run(tmp_path / "run").resume(tmp_path / "run")
    assert bits(tmp_path / "run") == bits(result.path)


@pytest.mark.parametrize("method", ["full", "head", "bias"])
def test_every_tuning_method_runs_end_to_end(tmp_path, method):
    overrides = [f"tuning.name={method}", "strategy.num_rounds=1"]
    done = Experiment.from_toml(write_small(tmp_path), overrides).run(tmp_path / "run")
    assert evaluate_adapter(done.path).measures["accuracy"] == done.measures["accuracy"]


def test_a_byte_budget_ends_the_run(tmp_path):
    done = Experiment.from_toml(write_small(tmp_path), ["byte_budget_mib=0.001"]).run(tmp_path / "run")
    assert done.summary["rounds"] == 1


def test_an_existing_directory_is_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with pytest.raises(fedelta.InputError, match="fedelta resume"):
        Experiment.from_toml(write_small(tmp_path)).run(tmp_path / "run")


def test_inspect_counts_what_the_adapter_tunes_that_a_run_starts_from(result, tmp_path):
    # The configuration's own rank is 8; the adapter has 2.
    adapter = json.dumps(str(result.path / "adapter"))
    config = load_config(write_small(tmp_path), ["tuning.r=", f"model.adapter={adapter}"])
    assert inspect(config).tuned_parameters == result.summary["tuned_parameters"]


def _with_classes(result, path, names):
    """The run's adapter, as if its classes had these names, in label order."""
    shutil.copytree(result.path / "adapter", path)
    own = json.loads((path / "fedelta.json").read_text())
    (path / "fedelta.json").write_text(json.dumps(own | {"class_names": names}))
    return path


def test_an_adapter_for_other_classes_is_refused(result, tmp_path):
    other = _with_classes(result, tmp_path / "adapter", [f"class {index}" for index in range(10)])
    with pytest.raises(AdapterError, match="trained for other classes than those of the data"):
        Experiment.from_toml(write_small(tmp_path), [f"model.adapter={json.dumps(str(other))}"]).run(tmp_path / "run")


def test_an_adapter_with_its_classes_in_another_order_is_evaluated_by_name(result, tmp_path):
    # Its row for the digit d now stands for 9 - d, so that it is right where the run's own is right about 9 - d.
    backwards = _with_classes(result, tmp_path / "adapter", [str(9 - index) for index in range(10)])
    turned = evaluate_adapter(result.path, backwards)
    own = evaluate_adapter(result.path)
    assert [row[::-1] for row in own.confusion.counts] == list(turned.confusion.counts)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_hint(tmp_path):
    overrides = ["strategy.server_lr=1e30", "codec.name=float32", "strategy.num_rounds=1"]
    with pytest.raises(RoundError, match=r"hint: lower `client\.lr` or `strategy\.server_lr`"):
        Experiment.from_toml(write_small(tmp_path), overrides).run(tmp_path / "run")


def test_a_configuration_made_in_python_is_checked_across_its_sections(tmp_path):
    config = load_config(write_small(tmp_path))
    strategy = config.strategy.model_copy(update={"min_replies": 5})
    with pytest.raises(ConfigError, match=r"`strategy.min_replies` is 5, more than"):
        Experiment(config.model_copy(update={"strategy": strategy}))


def test_a_checkpoint_in_half_precision_gives_random_weights_in_full_precision():
    source = fedelta.ModelSource(architecture={"model_type": "vit", "hidden_size": 24, "dtype": "float16"})
    module = build(source, ("a", "b"), seed=0, device="meta").module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
