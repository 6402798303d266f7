"""Language models and tags over sites that have texts of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.deployment.local import AT, Local
from tests.small_language import dialogues, small_config, write_model, write_table
from tests.test_token_runs import CONFIG as TAGS
from tests.test_token_runs import write_model as write_tagger
from tests.test_token_runs import write_texts

from fedelta.errors import InputError
from fedelta.inference.predict import Predictor
from fedelta.models.generation import Sampling


def rounds_of(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def speaking(folder: Path, model: Path, overrides: tuple[str, ...] = (), rows=dialogues) -> Local:
    """Two sites with dialogues of three farms each."""
    own = {}
    for number, name in enumerate(AT):
        farms = {f"farm {3 * number + place}" for place in range(3)}
        there = [row for row in rows(90) if row["client"] in farms]
        table = write_table(folder / f"{name}.jsonl", there)
        data = {"source": str(table), "client_column": "client", "max_length": 48}
        own[name] = {"data": data, "model": {"source": str(model)}}
    text = small_config(model, folder / "none.jsonl")
    overrides = ("data.source=sites", "deployment.evaluate=sites", *overrides)
    return Local(folder / "deployed", at=dict.fromkeys(AT), text=text, overrides=overrides, own=own)


def test_sites_tune_a_language_model_and_measure_its_answers(model, tmp_path):
    local = speaking(tmp_path, model)
    local.conduct()
    first, last = rounds_of(local.run)
    assert first["measures"].keys() == {"test_loss", "perplexity"}
    assert last["measures"].keys() == {"test_loss", "perplexity", "exact_match", "rouge_l"}
    assert last["cohort_names"] != first["cohort_names"]
    for site in last["sites"]:
        assert 0 <= site["measures"]["rouge_l"] <= 1
    assert json.loads((local.run / "summary.json").read_text())["measures"] == last["measures"]
    (answer,) = Predictor.open(local.run).generate(["What does the old cow do?"], Sampling(max_new_tokens=3))
    assert answer


def test_sites_answer_in_the_rounds_that_the_setting_names(model, tmp_path):
    local = speaking(tmp_path, model, ("task.answers_every=1", "task.num_answers=1", "strategy.num_rounds=2"))
    local.conduct()
    for record in rounds_of(local.run):
        assert record["measures"].keys() == {"test_loss", "perplexity", "exact_match", "rouge_l"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"response": "  "}, r"site 'hamburg'.* has an empty response"),
        ({"response": None}, r"site 'hamburg'.* has an empty response"),
    ],
)
def test_dialogues_that_cannot_be_used_are_refused_before_round_1(model, tmp_path, change, problem):
    def rows(num: int) -> list[dict[str, object]]:
        return [{**row, **(change if row["client"] == "farm 4" else {})} for row in dialogues(num)]

    local = speaking(tmp_path, model, rows=rows)
    with pytest.raises(InputError, match=problem):
        local.conduct()
    assert not (local.run / "rounds.jsonl").exists() or not rounds_of(local.run)


def tagging(folder: Path, *overrides: str, column: str = "ner_tags") -> Local:
    """Two sites with texts in words, one client each."""
    write_tagger(folder / "bert")
    own = {}
    for number, name in enumerate(AT):
        for place, size in (("train", 60), ("test", 20)):
            write_texts(folder / name / f"{place}.parquet", size, seed=10 * number + size)
        data = {"source": str(folder / name), "label_column": column}
        own[name] = {"data": data, "model": {"source": str(folder / "bert")}}
    text = TAGS.replace("FOLDER", str(folder)).replace("clients_per_round = 3", "clients_per_round = 2")
    overrides = ("data.source=sites", "data.test_source=", "deployment.evaluate=sites", *overrides)
    overrides = (*overrides, "data.client_column=")
    return Local(folder / "deployed", at=dict.fromkeys(AT), text=text, overrides=overrides, own=own)


def test_sites_tune_a_tagger_and_measure_its_spans(tmp_path):
    local = tagging(tmp_path)
    local.conduct()
    last = rounds_of(local.run)[-1]
    assert last["measures"]["entity_f1"] > 0.8
    assert [site["measures"]["entity_f1"] > 0.8 for site in last["sites"]] == [True, True]
    (answer,) = Predictor.open(local.run).predict(["king maria visits the old oslo"])
    assert [span.kind for span in answer.spans] == ["PER", "LOC"]
