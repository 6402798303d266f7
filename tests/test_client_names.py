"""Names of clients, from a column of the data to everything that people look at."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, Value
from sklearn.datasets import load_digits
from tests.small import CONVOLUTIONAL, SMALL, write_small
from typer.testing import CliRunner

from fedelta.cli import app
from fedelta.errors import ConfigError, InputError
from fedelta.experiment import Experiment, Result
from fedelta.inference.predict import Predictor

SITES = ("delft", "aachen", "cork", "bath")
HELD_OUT = "\n[personalization]\nheld_out = ['cork']\nlrs = [0.1]\n"


def natural(folder: Path, text: str, sites: tuple[object, ...] = SITES) -> Path:
    """`text` on 120 digits in turn of four sites, instead of its own data and partition."""
    digits = load_digits()
    table = {
        "image": list(digits.images[:120].astype(np.uint8) * 15),
        "label": digits.target[:120].tolist(),
        "site": [sites[row % 4] for row in range(120)],
    }
    kind = "string" if isinstance(sites[0], str) else "int64"
    features = Features({"image": Array2D((8, 8), "uint8"), "label": Value("int64"), "site": Value(kind)})
    Dataset.from_dict(table, features=features).to_parquet(folder / "digits.parquet")
    start, end = text.index("[data]"), text.index("[strategy]")
    data = f"[data]\nsource = '{folder}/digits.parquet'\nclient_column = 'site'\n\n[partition]\nname = 'natural'\n\n"
    return write_small(folder, text=text[:start] + data + text[end:])


def call(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(item) for item in arguments])
    return done.exit_code, done.output if done.exception is None else str(done.exception)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    folder = tmp_path_factory.mktemp("names")
    config = natural(folder, SMALL + HELD_OUT)
    return Experiment.from_toml(config, ["stability.dropout_fraction=0.5"]).run(folder / "run")


def test_the_files_of_a_run_call_clients_by_their_names(result):
    content = json.loads((result.path / "partition.json").read_text())
    # Numbers follow the names in ascending order, whatever comes first in the data.
    assert content["names"] == {"0": "aachen", "1": "bath", "2": "cork", "3": "delft"}
    assert (set(content["clients"]), set(content["held_out"])) == ({"0", "1", "3"}, {"2"})
    rounds = lines(result.path / "rounds.jsonl")
    for item in rounds:
        assert item["cohort_names"] == [content["names"][str(number)] for number in item["cohort"]]
    rejections = [rejection for item in rounds for rejection in item["rejections"]]
    assert rejections
    assert all(item["client_name"] == content["names"][str(item["client_id"])] for item in rejections)


def test_the_summary_has_the_measures_of_each_client_by_its_name(result):
    by_client = result.summary["by_client"]
    assert {number: own["client_name"] for number, own in by_client.items()} == {
        "0": "aachen",
        "1": "bath",
        "3": "delft",
    }
    assert sum(own["num_examples"] for own in by_client.values()) == len(result.assembly.data.test)


def test_the_name_in_the_settings_decides_who_is_held_out(result):
    raw = Dataset.from_parquet(str(result.path.parent / "digits.parquet"))
    # The test set is a fifth of the rows; none of it is of the client that is held out.
    data = result.assembly.data
    assert len(data.train) + 24 == len(raw)
    assert 0 < len(data.test) < 24
    assert data.clients.find("cork") == 2
    assert set(data.held_out) == {2}


def test_a_resumed_run_writes_the_same_names(result, tmp_path):
    config = natural(tmp_path, SMALL + HELD_OUT)

    def interrupt(outcome: object, ledger: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(config, ["stability.dropout_fraction=0.5"]).run(tmp_path / "run", on_round=interrupt)
    Experiment.from_run(tmp_path / "run").resume(tmp_path / "run")
    assert (tmp_path / "run/rounds.jsonl").read_bytes() == (result.path / "rounds.jsonl").read_bytes()


def test_personalisation_and_the_page_call_clients_by_their_names(result, pages):
    with pages():
        code, output = call("personalize", result.path)
    assert code == 0
    assert "client 2 ('cork'), adapters" in output  # the bar
    assert output.count("cork") > 1  # the table, as wide as the terminal lets it
    record = json.loads((result.path / "personalization.json").read_text())
    for scope in record["scopes"].values():
        assert [(item["client_id"], item["client_name"]) for item in scope["clients"]] == [(2, "cork")]
        assert scope["after"]["worst_client_name"] == "cork"
    page = (result.path / "report.html").read_text()
    lost = next(item for line in lines(result.path / "rounds.jsonl") for item in line["rejections"])
    assert f"<td>{lost['client_name']} ({lost['client_id']})</td>" in page
    assert re.search(r"%, cork \(2\)</td>", page)
    assert ">aachen (0)</text>" in page  # below the figure of classes


@pytest.fixture(scope="module")
def own_norms(tmp_path_factory) -> Result:
    folder = tmp_path_factory.mktemp("norms")
    config = natural(folder, CONVOLUTIONAL, sites=(40, 10, 30, 20))
    overrides = ["model.batch_norm=local", "strategy.clients_per_round=4", "strategy.num_rounds=1"]
    return Experiment.from_toml(config, overrides).run(folder / "run")


def test_a_client_may_be_asked_for_by_its_name(own_norms, tmp_path):
    image = tmp_path / "a.png"
    from PIL import Image

    Image.fromarray(load_digits().images[3].astype(np.uint8) * 15).save(image)
    # Named by numbers: 10 is the first of them.
    (first,) = own_norms.predictor(10).predict([image])
    assert first == own_norms.predictor("10").predict([image])[0]
    (opened,) = Predictor.open(own_norms.path, 10).predict([image])
    assert opened.probabilities == pytest.approx(first.probabilities, abs=1e-5)
    code, output = call("predict", own_norms.path, image, "--client", "10")
    assert (code, output.split("\t")[1]) == (0, first.label)
    (fourth,) = own_norms.predictor(40).predict([image])
    assert fourth.probabilities != first.probabilities


@pytest.mark.parametrize("ask", [lambda run: run.predictor(0), lambda run: Predictor.open(run.path, 0)])
def test_a_client_that_is_not_there_is_refused_with_those_that_are(own_norms, ask):
    with pytest.raises(InputError, match="there is no client 0, expected one of 4 clients: 10, 20, 30, 40"):
        ask(own_norms)
    code, message = call("predict", own_norms.path, "a.png", "--client", "delft")
    assert code != 0
    assert "there is no client 'delft', expected one of 4 clients: 10, 20, 30, 40" in message


def test_who_has_a_model_is_said_by_name(own_norms):
    with pytest.raises(
        InputError, match="has one model per client, because clients keep their norms; select a client"
    ) as caught:
        Predictor.open(own_norms.path)
    expected = "clients with a model: client 0 (10), client 1 (20), client 2 (30), client 3 (40)."
    assert caught.value.hint == expected


def test_an_unknown_name_in_the_settings_is_refused_before_the_run(tmp_path):
    config = natural(tmp_path, SMALL)
    with pytest.raises(ConfigError, match="has 'york', but there are 4 clients: 'aachen', 'bath', 'cork', 'delft'"):
        Experiment.from_toml(config, ["personalization.held_out=['york']"]).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
