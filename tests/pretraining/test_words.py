"""The bundled language model: small, made by the script of this repository, and worth having."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from pretraining.words import train

from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "src" / "fedelta" / "models" / "bundled" / "words-micro"
RECIPE = ROOT / "recipes" / "instruct-tiny.toml"


def test_the_directory_takes_at_most_two_megabytes():
    assert sum(file.stat().st_size for file in DIRECTORY.iterdir()) <= 2_000_000


def test_the_record_is_that_of_the_script_and_of_the_weights():
    record = json.loads((DIRECTORY / "provenance.json").read_text())
    assert record["sha256"] == hashlib.sha256((DIRECTORY / "model.safetensors").read_bytes()).hexdigest()
    assert (record["seed"], record["steps"], record["network"]) == (train.SEED, train.STEPS, train.NETWORK)
    assert record["texts"].startswith(f"{train.TEXTS} of fedelta.data.small_world")


def test_the_tokenizer_is_that_of_the_script():
    from transformers import AutoTokenizer

    bundled = AutoTokenizer.from_pretrained(DIRECTORY)
    assert bundled.get_vocab() == train.tokenizer().get_vocab()


@pytest.mark.slow
def test_the_recipe_beats_the_model_that_is_not_tuned(tmp_path: Path):
    before = evaluate_adapter(RECIPE).measures
    after = Experiment.from_toml(RECIPE).run(tmp_path / "run").measures
    assert after["test_loss"] < 0.3 * before["test_loss"]
    assert before["exact_match"] == 0.0
    assert after["exact_match"] > 0.3


def test_a_few_steps_already_lower_the_loss(tmp_path: Path):
    few = ("strategy.num_rounds=2", "client.local_steps=4", "data.max_test_examples=64", "task.num_answers=0")
    losses = []
    Experiment.from_toml(RECIPE, (*few, "evaluate_every=1")).run(
        tmp_path / "run", on_round=lambda outcome, _: losses.append(outcome.evaluation.measures["test_loss"])
    )
    assert losses[1] < losses[0] - 1
