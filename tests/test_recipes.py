"""The recipes of this repository: each is valid, and the main job keeps its promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedelta.config import load_config
from fedelta.experiment import Experiment
from fedelta.inspection import inspect

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
DEMO = next(path for path in RECIPES if path.stem == "demo")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_so_is_every_override_that_it_recommends(path):
    load_config(path)
    recommended = re.findall(r"--set ([\w.]+=[\w.]+)", path.read_text())
    # Those of a path wait for the reader's own.
    load_config(path, [override for override in recommended if not override.endswith("=PATH")])


def test_the_main_job_is_the_one_that_was_promised_and_sends_less_than_a_twentieth():
    config = load_config(DEMO)
    assert (config.data.source, config.partition.num_clients, config.strategy.clients_per_round) == ("digits", 64, 8)
    assert (config.partition.name, config.partition.alpha, config.tuning.name) == ("dirichlet", 0.1, "lora")
    found = inspect(config)
    assert found.tuned_parameters <= 0.05 * found.total_parameters
    assert found.payload_bytes <= 0.05 * found.full_model_bytes


def test_three_rounds_of_the_main_job_already_know_most_digits(tmp_path):
    # Chance is 10 %, and random weights are still there: `--set model.pretrained=false` gave 10.3 %.
    result = Experiment.from_toml(DEMO, ["strategy.num_rounds=3"]).run(tmp_path / "run")
    assert result.accuracy > 0.5


@pytest.mark.slow
def test_the_main_job_reaches_ninety_percent_and_beats_random_weights_by_ten_points(tmp_path):
    pretrained = Experiment.from_toml(DEMO).run(tmp_path / "pretrained")
    random = Experiment.from_toml(DEMO, ["model.pretrained=false"]).run(tmp_path / "random")
    assert pretrained.accuracy >= 0.9
    assert pretrained.accuracy >= random.accuracy + 0.1
