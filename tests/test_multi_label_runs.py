"""From several labels for each image to a run, its report, its answers and an exported model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.builders import assert_same_bits
from tests.small import SMALL, stop_after, write_small
from typer.testing import CliRunner

from fedelta.cli import app
from fedelta.errors import DataError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment, Result
from fedelta.inference.predict import Predictor
from fedelta.report.writing import write_report

_MODEL = SMALL[SMALL.index("[model.arch") : SMALL.index("[tuning]")]
CORNERS = f"""
seed = 3

[task]
name = "multi-label"

{_MODEL}
[tuning]
name = "full"

[data]
source = "FOLDER/train.parquet"
test_source = "FOLDER/test.parquet"

[partition]
name = "dirichlet"
num_clients = 4
alpha = 1.0
min_size = 3

[strategy]
clients_per_round = 4
num_rounds = 6

[client]
local_epochs = 3
batch_size = 8
lr = 0.003

[client.optimizer]
name = "adamw"
"""
NAMES = ("north", "east", "south")
HALVES = {"north": np.s_[:4, :], "east": np.s_[:, 4:], "south": np.s_[4:, :]}


def write_images(path: Path, num_rows: int, seed: int) -> None:
    """Dark images with any of three halves brighter; a column of lists, and one of 0 and 1 for each half."""
    from datasets import Array2D, ClassLabel, Dataset, Features, List, Value

    generator = np.random.default_rng(seed)
    bright = generator.random((num_rows, 3)) < (0.5, 0.4, 0.15)
    images = generator.integers(0, 40, (num_rows, 8, 8))
    for number, place in enumerate(HALVES.values()):
        images[:, *place] += 100 * bright[:, number, None, None]
    rows = {
        "image": images.clip(0, 255).astype("uint8").tolist(),
        "corners": [np.flatnonzero(row).tolist() for row in bright],
        **{name: bright[:, number].astype(int).tolist() for number, name in enumerate(NAMES)},
    }
    features = Features(
        {
            "image": Array2D((8, 8), "uint8"),
            "corners": List(ClassLabel(names=NAMES)),
            **dict.fromkeys(NAMES, Value("int64")),
        }
    )
    Dataset.from_dict(rows, features=features).to_parquet(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corners")
    write_images(folder / "train.parquet", 160, seed=0)
    write_images(folder / "test.parquet", 60, seed=1)
    return folder


def configuration(folder: Path, where: Path | None = None) -> Path:
    return write_small(where or folder, "corners.toml", CORNERS.replace("FOLDER", str(folder)))


@pytest.fixture(scope="module")
def result(folder) -> Result:
    return Experiment.from_toml(configuration(folder)).run(folder / "run")


def test_a_model_learns_several_labels_at_once(result):
    assert result.measures["micro_f1"] > 0.9
    assert result.measures["auroc"] > 0.95
    summary = json.loads((result.path / "summary.json").read_text())
    assert summary["final_micro_f1"] == summary["measures"]["micro_f1"]
    assert summary["primary_measure"] == "micro_f1"
    assert list(summary["by_class"]) == list(NAMES)
    assert not (result.path / "confusion.json").exists()


def test_columns_of_0_and_1_give_the_same_run(result, folder, tmp_path):
    named = ["data.label_columns=['north','east','south']"]
    run = Experiment.from_toml(configuration(folder, tmp_path), named).run(tmp_path / "run")
    assert_same_bits(run.params, result.params)


def test_a_run_that_stops_resumes_to_the_same_bits(folder, tmp_path):
    overrides = ["task.pos_weight=balanced", "task.focal_gamma=1.0", "strategy.num_rounds=2"]
    whole = Experiment.from_toml(configuration(folder, tmp_path), overrides).run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(configuration(folder, tmp_path), overrides).run(tmp_path / "run", on_round=stop_after(1))
    again = Experiment.from_run(tmp_path / "run").resume(tmp_path / "run")
    assert_same_bits(again.params, whole.params)
    weights = Predictor.open(again.path).task.pos_weight
    assert list(weights) == list(NAMES)
    assert weights["south"] > 3


def test_clients_differ_in_their_rarest_labels(result):
    partition = json.loads((result.path / "partition.json").read_text())
    assert partition["class_names"] == [*NAMES, "no label"]
    assert sum(sum(counts) for counts in partition["clients"].values()) == 160


def test_what_a_run_measured_is_measured_again_and_written_by_row(result, tmp_path):
    assert evaluate_adapter(result.path).measures == result.measures
    done = CliRunner().invoke(app, ["evaluate", str(result.path), "--predictions", str(tmp_path / "p.csv")])
    assert list(json.loads(done.stdout)) == ["micro_f1", "macro_f1", "exact_match", "evaluation_loss_nats", "auroc"]
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    exact = np.mean([row["labels"] == row["predicted"] for row in rows])
    assert exact == pytest.approx(result.measures["exact_match"])


def test_it_answers_with_labels_and_is_exported(result, tmp_path):
    from PIL import Image

    image = np.full((8, 8), 20, dtype="uint8")
    image[:4] += 100
    Image.fromarray(image).save(tmp_path / "north.png")
    said = CliRunner().invoke(app, ["predict", str(result.path), str(tmp_path / "north.png")]).stdout.split("\t")
    assert said[1] == "north"
    dark = Predictor.open(result.path).predict([torch.full((1, 8, 8), 20, dtype=torch.uint8)])
    assert dark[0].cells == ("(none)", "")
    done = CliRunner().invoke(app, ["export", str(result.path), "--onnx", "--out", str(tmp_path / "onnx")])
    assert done.exit_code == 0, done.output
    card = (result.path / "adapter" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "3 labels: north, east, south" in card


def test_a_report_and_a_check_speak_of_labels(result, folder, tmp_path):
    write_report([result.path], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Labels, worst first" in page
    assert "Mean AUROC" in page
    said = CliRunner().invoke(app, ["check", str(configuration(folder, tmp_path))]).stdout
    assert "rarest labels: 4, each with its training + test examples: 'north'" in said
    assert "is ['north', 'east']" in said or "is ['north']" in said
    assert "3 labels, " in said


def test_lists_are_refused_by_a_classification_that_names_the_task(folder, tmp_path):
    overrides = ["task.name=classification", "data.label_column=corners"]
    with pytest.raises(DataError, match=r'set `task.name` = "multi-label"'):
        _ = Experiment.from_toml(configuration(folder, tmp_path), overrides).assembly


def test_an_accumulator_answers_at_every_exit(folder, tmp_path):
    overrides = ("tuning.name=exit-heads", "exits.train=distill", "strategy.num_rounds=1")
    run = Experiment.from_toml(configuration(folder, tmp_path), overrides).run(tmp_path / "run")
    assert len(run.summary["micro_f1_by_exit"]) == 2
    (answer,) = run.predictor().predict([torch.full((1, 8, 8), 20, dtype=torch.uint8)], confidence=0.5)
    assert answer.exit == 1
