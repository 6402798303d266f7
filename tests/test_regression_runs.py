"""From numbers in a column to a run, its report and its answers: all that a second task needs is its file."""

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
from fedelta.config import load_config
from fedelta.errors import AdapterError, ConfigError, DataError, InputError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment, Result
from fedelta.inference.predict import Predictor
from fedelta.inspection import inspect
from fedelta.report.writing import write_report
from fedelta.tasks.regression import Estimate, Regression

_MODEL = SMALL[SMALL.index("[model.arch") : SMALL.index("[tuning]")]
BRIGHTNESS = f"""
seed = 3

[task]
name = "regression"
offset = 10.0
scale = 6.0

{_MODEL}
[tuning]
name = "full"

[data]
source = "FOLDER/train.parquet"
test_source = "FOLDER/test.parquet"
client_column = "site"

[partition]
name = "natural"

[strategy]
clients_per_round = 3
num_rounds = 6

[client]
local_epochs = 3
batch_size = 8
lr = 0.003

[client.optimizer]
name = "adamw"
"""
SITES = ("north", "=east", "south")


def write_images(path: Path, num_rows: int, seed: int, column: str = "target", kind: str = "float64") -> None:
    """Images of noise around a level from 0 to 200; a tenth of it is the target."""
    from datasets import Array2D, Dataset, Features, Value

    generator = np.random.default_rng(seed)
    levels = generator.integers(0, 200, num_rows)
    images = (levels[:, None, None] + generator.integers(0, 50, (num_rows, 8, 8))).astype("uint8")
    rows = {
        "image": images.tolist(),
        column: (levels / 10).astype("U" if kind == "string" else kind).tolist(),
        "site": [SITES[row % 3] for row in range(num_rows)],
    }
    features = Features({"image": Array2D((8, 8), "uint8"), column: Value(kind), "site": Value("string")})
    Dataset.from_dict(rows, features=features).to_parquet(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("brightness")
    write_images(folder / "train.parquet", 120, seed=0)
    write_images(folder / "test.parquet", 40, seed=1)
    return folder


def configuration(folder: Path, where: Path | None = None) -> Path:
    return write_small(where or folder, "brightness.toml", BRIGHTNESS.replace("FOLDER", str(folder)))


@pytest.fixture(scope="module")
def result(folder) -> Result:
    return Experiment.from_toml(configuration(folder)).run(folder / "run")


def test_a_model_learns_numbers(result):
    # Levels are even in 0..20: a constant answer is off by 20 / sqrt(12) = 5.8.
    assert result.measures["rmse"] < 2.5
    assert result.measures["r2"] > 0.8
    summary = json.loads((result.path / "summary.json").read_text())
    rounds = [json.loads(line)["measures"]["rmse"] for line in (result.path / "rounds.jsonl").read_text().splitlines()]
    assert (summary["final_rmse"], summary["best_rmse"]) == (rounds[-1], min(rounds))
    assert summary["measures"]["rmse"] == rounds[-1]
    assert {client: values["num_examples"] for client, values in summary["by_client"].items()} == {
        "0": 13, "1": 14, "2": 13,
    }  # fmt: skip
    assert summary["by_class"] == {}
    assert not (result.path / "confusion.json").exists()


def test_offset_and_scale_are_found_from_the_clients_and_stay(folder, tmp_path):
    """Mean and deviation of the 120 levels, also after a stop, in the adapter, and in a run that starts from it."""
    config = configuration(folder, tmp_path)
    automatic = ["task.offset=", "task.scale=", "strategy.num_rounds=2"]
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(config, automatic).run(tmp_path / "run", on_round=stop_after(1))
    run = Experiment.from_run(tmp_path / "run").resume(tmp_path / "run")
    levels = np.random.default_rng(0).integers(0, 200, 120) / 10
    task = Predictor.open(run.path).task
    assert (task.offset, task.scale) == pytest.approx((levels.mean(), levels.std()))
    assert evaluate_adapter(run.path).measures == run.measures
    assert evaluate_adapter(config, run.path / "adapter", automatic).measures == pytest.approx(run.measures, rel=1e-6)
    again = Experiment.from_toml(
        config, [*automatic, f"model.adapter={run.path / 'adapter'}", "data.max_train_examples=60"]
    )
    assert again.assembly.task == task


def test_two_numbers_are_learned_together(folder, tmp_path):
    from datasets import load_dataset

    for name in ("train", "test"):
        rows = load_dataset(
            "parquet", data_files=str(folder / f"{name}.parquet"), split="train", cache_dir=tmp_path / "c"
        )
        rows = rows.add_column("darkness", [1000 - 50 * value for value in rows["target"][:]])
        rows.to_parquet(tmp_path / f"{name}.parquet")
    config = configuration(tmp_path, tmp_path)
    named = ["data.label_columns=['target','darkness']", "task.offset=", "task.scale="]
    run = Experiment.from_toml(config, named).run(tmp_path / "run")
    darkness, target = (run.summary["by_class"][name] for name in ("darkness", "target"))
    assert target["rmse"] < 2.5
    assert darkness["rmse"] == pytest.approx(50 * target["rmse"], rel=0.2)
    assert run.measures["rmse"] == pytest.approx((darkness["rmse"] + target["rmse"]) / 2)
    (answer,) = Predictor.open(run.path).predict([torch.full((1, 8, 8), 125, dtype=torch.uint8)])
    assert answer.values["target"] == pytest.approx(10, abs=3)
    assert answer.values["darkness"] == pytest.approx(500, abs=150)
    card = (run.path / "adapter" / "README.md").read_text()
    assert "2 numbers: target, darkness" in card
    write_report([run.path], run.path / "page.html")
    assert "Numbers, worst first" in (run.path / "page.html").read_text()
    said = CliRunner().invoke(app, ["check", str(config), *(f"--set={name}" for name in named)]).stdout
    assert "2 numbers, " in said
    assert "classes" not in said


def test_a_run_that_stops_resumes_to_the_same_bits(result, folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(configuration(folder, tmp_path)).run(tmp_path / "run", on_round=stop_after(2))
    again = Experiment.from_run(tmp_path / "run").resume(tmp_path / "run")
    assert_same_bits(again.params, result.params)
    assert (again.path / "rounds.jsonl").read_bytes() == (result.path / "rounds.jsonl").read_bytes()


def test_what_a_run_measured_is_measured_again(result):
    assert evaluate_adapter(result.path).measures == result.measures


def test_predictions_of_the_test_set_are_in_the_unit_of_the_targets(result, tmp_path):
    done = CliRunner().invoke(app, ["evaluate", str(result.path), "--predictions", str(tmp_path / "p.csv")])
    assert list(json.loads(done.stdout)) == ["rmse", "mae", "evaluation_mse", "r2"]
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == [str(row) for row in range(40)]
    # A name that a spreadsheet would take for a formula is kept from being one.
    assert [row["client"] for row in rows[:3]] == ["north", "'=east", "south"]
    errors = [float(row["predicted"]) - float(row["target"]) for row in rows]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(result.measures["rmse"], rel=1e-5)


def test_a_report_shows_the_error_and_the_ranges_of_targets(result):
    write_report([result.path], result.path / "page.html")
    page = (result.path / "page.html").read_text()
    assert "root mean squared error" in page.lower()
    assert "3 clients hold 120 training examples of 10 ranges" in page
    assert "classes each" not in page
    ranges = json.loads((result.path / "partition.json").read_text())
    assert (len(ranges["class_names"]), ranges["class_names"][0][:6]) == (10, "below ")
    assert all(len(counts) == 10 and sum(counts) == 40 for counts in ranges["clients"].values())


def test_it_answers_with_a_number(result, tmp_path):
    from PIL import Image

    Image.fromarray(np.full((8, 8), 125, dtype="uint8")).save(tmp_path / "grey.png")  # level 100 and noise of 25
    predictor = Predictor.open(result.path)
    assert predictor.task == Regression(offset=10.0, scale=6.0)
    (answer,) = predictor.predict([tmp_path / "grey.png"])
    assert isinstance(answer, Estimate)
    assert answer.value == pytest.approx(10, abs=3)
    assert result.predictor().predict([tmp_path / "grey.png"])[0].value == pytest.approx(answer.value, rel=1e-4)
    said = CliRunner().invoke(app, ["predict", str(result.path), str(tmp_path / "grey.png")]).stdout
    assert said == f"{tmp_path / 'grey.png'}\t{answer.value:.6g}\n"


def test_exits_learn_numbers_and_are_not_chosen_by_confidence(folder, tmp_path):
    overrides = ("tuning.name=exit-heads", "exits.train=distill", "strategy.num_rounds=2", "client.lr=0.01")
    run = Experiment.from_toml(configuration(folder, tmp_path), overrides).run(tmp_path / "run")
    assert len(run.summary["rmse_by_exit"]) == 2
    assert run.summary["mean_exit_rmse"] == pytest.approx(sum(run.summary["rmse_by_exit"]) / 2)
    image = torch.full((1, 8, 8), 125, dtype=torch.uint8)
    answers = list(run.predictor().answers(image))
    assert [answer.exit for answer in answers] == [1, 2]
    with pytest.raises(InputError, match="a regression gives no confidence"):
        run.predictor().predict([image], confidence=0.9)


def test_clients_may_differ_in_the_ranges_that_they_have(folder, tmp_path):
    overrides = ("partition.name=pathological", "partition.num_clients=5", "partition.labels_per_client=2")
    data = Experiment.from_toml(configuration(folder, tmp_path), overrides).assembly.data
    strata = data.train.targets.strata
    assert all(len(strata[rows].unique()) == 2 for rows in data.partition.values())
    assert data.test.clients is None


def test_held_out_clients_fine_tune_by_the_lower_error(folder, tmp_path):
    from fedelta.personalization import personalize

    overrides = ("personalization.held_out=['south']", "strategy.clients_per_round=2", "strategy.num_rounds=1")
    run = Experiment.from_toml(configuration(folder, tmp_path), overrides).run(tmp_path / "run")
    record = personalize(run.path, ["personalization.lrs=[1e-9,0.003]", "personalization.local_epochs=5"])
    own = record["scopes"]["all"]
    assert own["clients"][0]["lr"] == 0.003
    assert own["after"]["mean_rmse"] < own["before"]["mean_rmse"]


def test_a_model_is_inspected_without_data(folder, tmp_path, caplog):
    path = configuration(folder, tmp_path)
    (tmp_path / "empty.parquet").touch()
    observed = inspect(load_config(path, [f"data.source={tmp_path / 'empty.parquet'}"]))
    assert observed.tuned_parameters == observed.total_parameters
    assert "sizes are those for one number, because the targets cannot be read: " in caplog.text


def test_the_numbers_of_lists_are_counted_where_the_data_can_be_read(folder, tmp_path):
    from datasets import Dataset

    path = configuration(folder, tmp_path)
    rows = Dataset.from_parquet(str(folder / "train.parquet"), cache_dir=str(tmp_path))
    lists = rows.map(lambda row: {"target": [row["target"], -row["target"], row["target"] / 2]})
    lists.to_parquet(tmp_path / "lists.parquet")
    overrides = [f"data.{key}={tmp_path / 'lists.parquet'}" for key in ("source", "test_source")]
    three, one = inspect(load_config(path, overrides)), inspect(load_config(path))
    # The head has 32 weights and a bias for each number.
    assert three.tuned_parameters - one.tuned_parameters == 2 * 33


def test_validation_has_nothing_to_say_of_classes(folder, tmp_path):
    said = CliRunner().invoke(app, ["check", str(configuration(folder, tmp_path))]).stdout
    assert "40 test examples, " in said
    assert "classes" not in said


@pytest.mark.parametrize(
    ("kind", "message"),
    [("bool", "holds 'bool', expected numbers"), ("string", "holds 'str', expected numbers")],
)
def test_columns_of_classes_are_refused(tmp_path, kind, message):
    write_images(tmp_path / "train.parquet", 12, seed=0, kind=kind)
    write_images(tmp_path / "test.parquet", 12, seed=1, kind=kind)
    with pytest.raises(DataError) as caught:
        _ = Experiment.from_toml(configuration(tmp_path)).assembly
    assert f"training set: target column 'target' {message}" in str(caught.value)
    assert f"test set: target column 'target' {message}" in str(caught.value)


def test_class_labels_are_refused_by_a_regression_and_numbers_by_a_classification(folder, tmp_path):
    with pytest.raises(DataError, match="target column 'label' holds class labels, expected numbers"):
        _ = Experiment.from_toml(write_small(tmp_path), ["task.name=regression"]).assembly
    overrides = ["task.name=classification", "data.label_column=target"]
    with pytest.raises(DataError, match=r"holds 'float', expected integers or texts; .* `task.name` = \"regression\""):
        _ = Experiment.from_toml(configuration(folder, tmp_path), overrides).assembly


def test_a_column_of_targets_that_is_not_found_has_to_be_named(tmp_path):
    write_images(tmp_path / "train.parquet", 12, seed=0, column="level")
    write_images(tmp_path / "test.parquet", 12, seed=1, column="level")
    with pytest.raises(
        DataError, match="exactly one column of numbers named 'target' or 'label', found no such column"
    ):
        _ = Experiment.from_toml(configuration(tmp_path)).assembly
    assert Experiment.from_toml(configuration(tmp_path), ["data.label_column=level"]).assembly.data.class_names == ()


def test_a_number_of_classes_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"`model.num_classes` is 3, but task 'regression' has no classes"):
        _ = Experiment.from_toml(configuration(folder, tmp_path), ["model.num_classes=3"]).assembly


def test_an_adapter_of_another_task_is_refused(result, folder, tmp_path):
    other = configuration(folder, tmp_path)
    with pytest.raises(AdapterError, match=r"another task: expected .*`task.scale` = 6.0, found .*`task.scale` = 1.0"):
        evaluate_adapter(other, result.path / "adapter", ["task.scale=1.0"])
    with pytest.raises(AdapterError, match=r"expected `task.name` = 'regression'"):
        evaluate_adapter(write_small(tmp_path), result.path / "adapter")


def test_a_scale_has_to_be_positive(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"`task.scale` is 0"):
        load_config(configuration(folder, tmp_path), ["task.scale=0.0"])
