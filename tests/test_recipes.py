"""The recipes of this repository: each is valid, and the main job keeps its promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedelta.cli import app
from fedelta.config import load_config
from fedelta.experiment import Experiment
from fedelta.inspection import inspect

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
DEMO = next(path for path in RECIPES if path.stem == "demo")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_so_is_every_override_that_it_recommends(path):
    text = path.read_text()
    # What lies beside the repository may be absent.
    own = {"model.source": "bundled:words-micro", "data.source": "small-world"} if "../shared" in text else {}
    absent = [f"{key}={value}" for key, value in own.items()]
    load_config(path, absent)
    recommended = re.findall(r"--set ([\w.]+=[\w.]+)", text)
    # Those of a path wait for the reader's own.
    load_config(path, [*absent, *(override for override in recommended if not override.endswith("=PATH"))])


def test_two_numbers_have_an_output_each_without_reading_the_data():
    recipe = DEMO.with_name("regression-scenes.toml")
    one, two = (inspect(load_config(recipe, overrides)) for overrides in (["data.label_columns=['sum']"], []))
    assert two.tuned_parameters - one.tuned_parameters == 193  # a row of the head: 192 features and a bias


def test_the_main_job_is_the_one_that_was_promised_and_sends_less_than_a_twentieth():
    config = load_config(DEMO)
    assert (config.data.source, config.partition.num_clients, config.strategy.clients_per_round) == ("digits", 64, 8)
    assert (config.partition.name, config.partition.alpha, config.tuning.name) == ("dirichlet", 0.1, "lora")
    result = inspect(config)
    assert result.tuned_parameters <= 0.05 * result.total_parameters
    assert result.payload_bytes <= 0.05 * result.full_model_bytes


# papers.md, sections 2.2 and 3.2: what each tuning method trains of ViT-B/16 at 100 classes, and of ResNet26 at 10.
@pytest.mark.parametrize(
    ("recipe", "name", "tuned_parameters", "mib"),
    [
        ("fedpeft-cifar100", "full", 85_875_556, 327.6),
        ("fedpeft-cifar100", "head", 76_900, 0.293),
        ("fedpeft-cifar100", "bias", 179_812, 0.686),
        ("fedpeft-cifar100", "adapter", 225_220, 0.859),
        ("fedpeft-cifar100", "prompt", 169_060, 0.645),
        ("fedpeft-resisc45", "head", 34_605, 34_605 * 4 / 2**20),
        ("fedpeft-resisc45", "bias", 137_517, 137_517 * 4 / 2**20),
        ("fedpeft-resisc45", "adapter", 182_925, 182_925 * 4 / 2**20),
        ("fedpeft-resisc45", "prompt", 126_765, 126_765 * 4 / 2**20),
        ("fedpeft-pcam", "head", 1_538, 1_538 * 4 / 2**20),
        ("fedpeft-pcam", "bias", 104_450, 104_450 * 4 / 2**20),
        ("fedpeft-pcam", "adapter", 149_858, 149_858 * 4 / 2**20),
        ("fedpeft-pcam", "prompt", 93_698, 93_698 * 4 / 2**20),
        # 655,530 parameters and 7,744 running statistics of four bytes.
        ("parallel-cross-silo", "parallel", 655_530, (655_530 + 7_744) * 4 / 2**20),
    ],
)
def test_published_counts_come_from_the_recipe_without_weights_or_data(
    recipe, name, tuned_parameters, mib, monkeypatch
):  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("counting asked the hub for a file")

    monkeypatch.setattr("transformers.utils.hub.cached_file", refuse)
    path = DEMO.with_name(f"{recipe}.toml")
    done = CliRunner().invoke(app, ["inspect", str(path), "--set", f"tuning.name={name}", "--json"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["tuned_parameters"] == tuned_parameters
    assert content["tensor_bytes"] / 2**20 == pytest.approx(mib, rel=2e-3)
    # Names and shapes do not travel: at most 2 KiB around the tensors.
    assert 0 < content["payload_bytes"] - content["tensor_bytes"] < 2048


def test_parallel_adapters_of_the_paper_and_of_the_bundled_network_send_at_most_an_eighth():
    for recipe in ("parallel-cross-silo", "parallel-digits"):
        path, float32 = DEMO.with_name(f"{recipe}.toml"), ["codec.name=float32"]
        parallel = inspect(load_config(path, float32))
        full = inspect(load_config(path, [*float32, "tuning.name=full"]))
        assert parallel.payload_bytes / full.payload_bytes <= 0.12


@pytest.mark.slow
def test_three_rounds_of_the_parallel_recipe_learn(tmp_path):
    # Chance is 10 %.
    result = Experiment.from_toml(DEMO.with_name("parallel-digits.toml"), ["strategy.num_rounds=3"]).run(
        tmp_path / "run"
    )
    assert result.measures["accuracy"] > 0.6


def test_two_short_rounds_of_the_main_job_already_know_most_digits(tmp_path):
    # Chance is 10 %, and random weights are still there after three rounds: `--set model.pretrained=false` gave 10.3 %.
    short = ["strategy.num_rounds=2", "evaluate_every=2", "client.local_epochs=3", "data.max_test_examples=120"]
    result = Experiment.from_toml(DEMO, short).run(tmp_path / "run")
    assert result.measures["accuracy"] > 0.5


@pytest.mark.parametrize("unit", ["client", "example"])
def test_the_private_recipe_runs_in_miniature_for_clients_and_for_examples(tmp_path, unit):
    # So much noise that an accountant needs milliseconds.
    short = [
        "strategy.num_rounds=1",
        "partition.num_clients=12",
        "strategy.clients_per_round=2",
        f"privacy.unit={unit}",
    ]
    short += ["client.local_epochs=", "client.local_steps=1", "data.max_test_examples=60"]
    short += ["privacy.target_epsilon=", "privacy.noise_multiplier=8.0"]
    summary = Experiment.from_toml(DEMO.with_name("dp-digits.toml"), short).run(tmp_path / "run").summary
    assert (summary["privacy_unit"], summary["delta"], summary["privacy_randomness"]) == (unit, 1e-3, "seeded")
    assert 0 < summary["epsilon"] <= summary["epsilon_rdp"] < 1


@pytest.mark.slow
def test_the_private_recipe_reaches_eighty_percent_within_its_epsilon(tmp_path):
    result = Experiment.from_toml(DEMO.with_name("dp-digits.toml")).run(tmp_path / "run")
    assert result.measures["accuracy"] >= 0.8
    # As much noise as needed, and no more.
    assert 4.9 < result.summary["epsilon"] <= 5.0 <= result.summary["epsilon_rdp"]


@pytest.mark.slow
def test_the_main_job_reaches_ninety_percent_and_beats_random_weights_by_ten_points(tmp_path):
    pretrained = Experiment.from_toml(DEMO).run(tmp_path / "pretrained")
    random = Experiment.from_toml(DEMO, ["model.pretrained=false"]).run(tmp_path / "random")
    assert pretrained.measures["accuracy"] >= 0.9
    assert pretrained.measures["accuracy"] >= random.measures["accuracy"] + 0.1
