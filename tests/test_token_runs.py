"""From words with tags to a run, its report, its answers, stock PEFT and an exported model."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.builders import assert_same_bits
from tests.cards import executed
from tests.small import stop_after, write_small
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast
from typer.testing import CliRunner

from fedelta.cli import app
from fedelta.errors import DataError, ModelError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment, Result
from fedelta.inference.predict import Predictor
from fedelta.report.writing import write_report

CONFIG = """
seed = 3

[task]
name = "tokens"

[model]
source = "FOLDER/bert"

[tuning]
name = "lora"
r = 8
lora_alpha = 16
target_modules = "all-linear"

[data]
source = "FOLDER/train.parquet"
test_source = "FOLDER/test.parquet"
client_column = "site"

[partition]
name = "natural"

[strategy]
clients_per_round = 3
num_rounds = 4

[client]
local_epochs = 3
batch_size = 8
lr = 0.01

[client.optimizer]
name = "adamw"
"""
NAMES, CITIES, VERBS = ["maria", "omar", "ingrid"], ["oslo", "limassol"], ["visits", "likes"]
TAGS = ("O", "B-PER", "I-PER", "B-LOC")


def write_model(path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "in", "the", "old", "##sol", "lima", "##s", "king"]
    vocabulary = {word: number for number, word in enumerate([*pieces, *NAMES, "oslo", *VERBS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForTokenClassification(config).save_pretrained(path)


def write_texts(path: Path, num_rows: int, seed: int) -> None:
    from datasets import ClassLabel, Dataset, Features, List, Value

    generator = np.random.default_rng(seed)
    rows = {"words": [], "ner_tags": [], "site": []}
    for row in range(num_rows):
        person = [str(generator.choice(NAMES))] if generator.random() < 0.6 else ["king", str(generator.choice(NAMES))]
        verb, city = str(generator.choice(VERBS)), str(generator.choice(CITIES))
        place = ["the", "old", city] if generator.random() < 0.5 else [city]
        rows["words"].append([*person, verb, *place])
        rows["ner_tags"].append([1, *[2] * (len(person) - 1), 0, *[0] * (len(place) - 1), 3])
        rows["site"].append("abc"[row % 3])
    features = Features(
        {"words": List(Value("string")), "ner_tags": List(ClassLabel(names=TAGS)), "site": Value("string")}
    )
    Dataset.from_dict(rows, features=features).to_parquet(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    write_model(folder / "bert")
    write_texts(folder / "train.parquet", 90, seed=0)
    write_texts(folder / "test.parquet", 40, seed=1)
    return folder


def configuration(folder: Path, where: Path | None = None) -> Path:
    return write_small(where or folder, "names.toml", CONFIG.replace("FOLDER", str(folder)))


@pytest.fixture(scope="module")
def result(folder) -> Result:
    return Experiment.from_toml(configuration(folder)).run(folder / "run")


def test_a_model_learns_tags(result):
    assert result.measures["entity_f1"] > 0.9
    summary = json.loads((result.path / "summary.json").read_text())
    assert summary["primary_measure"] == "entity_f1"
    assert list(summary["by_class"]) == ["PER", "LOC"]
    assert {values["num_examples"] for values in summary["by_client"].values()} == {13, 14}


def test_clients_in_lanes_learn_what_each_learns_alone(folder, tmp_path):
    one, three = (
        Experiment.from_toml(configuration(folder, tmp_path), [f"runtime.lanes={lanes}", "strategy.num_rounds=1"])
        for lanes in (1, 3)
    )
    assert three.assembly.engine.lanes.num == 3
    assert three.assembly.engine.notes == one.assembly.engine.notes
    alone, together = one.run(tmp_path / "one").params, three.run(tmp_path / "three").params
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_run_that_stops_resumes_to_the_same_bits(result, folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(configuration(folder, tmp_path)).run(tmp_path / "run", on_round=stop_after(2))
    again = Experiment.from_run(tmp_path / "run").resume(tmp_path / "run")
    assert_same_bits(again.params, result.params)


def test_what_a_run_measured_is_measured_again_and_written_by_row(result, tmp_path):
    assert evaluate_adapter(result.path).measures == result.measures
    done = CliRunner().invoke(app, ["evaluate", str(result.path), "--predictions", str(tmp_path / "p.csv")])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    pairs = [pair for row in rows for pair in zip(row["tags"].split(), row["predicted"].split(), strict=True)]
    assert np.mean([truth == answer for truth, answer in pairs]) == pytest.approx(result.measures["tag_accuracy"])


def test_it_answers_with_spans_of_words_that_have_several_tokens(result):
    said = CliRunner().invoke(app, ["predict", str(result.path), "king maria visits the old limassol"]).stdout
    assert said == "king maria visits the old limassol\tPER 1-2, LOC 6-6\tB-PER I-PER O O O B-LOC\n"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft reads it
def test_stock_peft_gives_the_same_tags_and_an_export_gives_them_by_token(result, folder, tmp_path):
    (said, scope), (ours, _) = executed(result.path / "adapter", tmp_path, folder / "bert")
    model = scope["model"]
    assert set(said.strip("[]").replace("'", "").split(", ")) <= set(TAGS)
    assert "tags=" in ours
    backbone = Predictor.open(result.path).backbone
    inputs = backbone.modality.export_inputs(3, 9, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, backbone.logits(inputs), rtol=1e-4, atol=1e-5)
    card = (result.path / "adapter" / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "4 tags: O, B-PER, I-PER, B-LOC" in card
    done = CliRunner().invoke(app, ["export", str(result.path), "--onnx", "--out", str(tmp_path / "onnx")])
    assert done.exit_code == 0, done.exception


def test_a_report_and_a_check_speak_of_tags(result, folder, tmp_path):
    write_report([result.path], tmp_path / "page.html")
    assert "Tags, worst first" in (tmp_path / "page.html").read_text()
    said = CliRunner().invoke(app, ["check", str(configuration(folder, tmp_path))])
    assert said.exit_code == 0, said.exception
    assert "4 tags, " in said.stdout
    assert re.search(r"'(king )?\w+ \w+ .*\w+' is \['B-PER', ", said.stdout)


def test_words_that_are_cut_off_are_told_and_count_as_missed(folder, tmp_path, caplog):
    short = Experiment.from_toml(configuration(folder, tmp_path), ["data.max_length=4", "strategy.num_rounds=1"])
    run = short.run(tmp_path / "run")
    assert "texts in column 'words' have more than 4 tokens: their last words, " in caplog.text
    assert run.summary["by_class"]["LOC"]["recall"] == 0.0


def test_what_cannot_be_is_refused_by_name(folder, tmp_path):
    with pytest.raises(ModelError, match="it answers for each word, and exits read the first token of a text"):
        _ = Experiment.from_toml(configuration(folder, tmp_path), ["tuning={name='exit-heads'}"]).assembly
    with pytest.raises(DataError, match=r'for the columns \'ner_tags\', \'words\', set `task.name` = "tokens"'):
        _ = Experiment.from_toml(configuration(folder, tmp_path), ["task.name=classification"]).assembly


def test_a_table_without_lists_is_refused_with_the_forms_that_have_them(folder, tmp_path):
    (tmp_path / "train.csv").write_text("words,tags,site\na b,O B-X,a\nc d,O O,b\n")
    with pytest.raises(DataError, match=r"are in JSON Lines or Parquet files; a CSV file cannot hold them"):
        _ = Experiment.from_toml(
            configuration(folder, tmp_path), [f"data.source={tmp_path / 'train.csv'}", "data.test_source="]
        ).assembly


def test_words_and_tags_of_unequal_length_are_refused(folder, tmp_path):
    from datasets import Dataset

    rows = {"words": [["a", "b"], ["c"]], "tags": [["O"], ["B-X"]], "site": ["a", "b"]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    overrides = [f"data.source={tmp_path / 'train.parquet'}"]
    with pytest.raises(DataError, match=r"columns 'words' and 'tags' differ in length in 1 rows: rows 0"):
        _ = Experiment.from_toml(configuration(folder, tmp_path), overrides).assembly
