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
    speaker = Predictor.open(local.run)
    answer = speaker.generate("What does the old cow do?", Sampling(max_new_tokens=3))
    assert isinstance(answer, str)
