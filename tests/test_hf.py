"""What the user of a Trainer has, federated: the same model, data sets, collator and metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tests.small_language import small_network, small_tokenizer

import fedelta
from fedelta.errors import InputError, ModelError
from fedelta.hf import client_of, federate_trainer

WORDS = {"good": ["yes fine", "fine fine yes yes", "yes"], "bad": ["no", "no never no", "never never no no"]}


def network(num_labels: int = 2, **others: Any) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=317, pad_token_id=2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32, num_labels=num_labels, **others,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def arguments(out: Path, **others: Any) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(out),
        learning_rate=0.01,
        per_device_train_batch_size=4,
        num_train_epochs=1,
        use_cpu=True,
        **others,
    )


def texts(num: int = 12) -> datasets.Dataset:
    kinds = ["good", "bad"] * (num // 2)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"text": [WORDS[kind][row % 3] for row, kind in enumerate(kinds)], "label": kinds}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer(has_pad=True)


def accuracy(prediction: Any) -> dict[str, float]:
    logits, labels = prediction
    return {"share": float((logits.argmax(-1) == labels).mean())}


def test_raw_and_tokenised_texts_of_a_trainer_give_the_same_params(tokenizer, tmp_path):
    raw = {"ann": texts(), "george": texts(8)}
    tokenised = {name: rows.map(lambda row: tokenizer(row["text"])) for name, rows in raw.items()}
    runs = [
        federate_trainer(
            network(), clients, test, args=arguments(tmp_path / name), num_rounds=2, processing_class=tokenizer,
            tuning=fedelta.Lora(r=2), compute_metrics=accuracy,
        )
        for name, clients, test in (("raw", raw, texts(6)), ("ready", tokenised, tokenised["george"].select(range(6))))
    ]  # fmt: skip
    for name, value in runs[0].params.items():
        torch.testing.assert_close(runs[1].params[name], value, rtol=1e-4, atol=1e-6)
    for run in runs:
        assert run.summary["metrics"]["share"] == run.measures["accuracy"]
        assert run.module().config.id2label == {0: "bad", 1: "good"}
    assert runs[0].predictor().predict(["yes yes"])[0].label in WORDS
    opened = fedelta.Predictor.open(runs[0].path, model=network(), processor=tokenizer)
    expected = runs[0].predictor().predict(["no never"])[0].probability
    assert opened.predict(["no never"])[0].probability == pytest.approx(expected, rel=1e-5)


def test_a_model_with_names_for_its_classes_keeps_their_order(tokenizer, tmp_path):
    model = network(id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1})
    run = federate_trainer(
        model, {"ann": texts()}, texts(6), args=arguments(tmp_path / "run"), num_rounds=1, processing_class=tokenizer
    )
    assert run.assembly.class_names == ("good", "bad")
    assert json.loads((run.path / "adapter" / "fedelta.json").read_text())["class_names"] == ["good", "bad"]


def test_a_language_model_is_tuned_on_dialogues(tmp_path):
    rows = [{"prompt": f"say {number}", "response": str(number)} for number in range(8)]
    clients = {"ann": datasets.Dataset.from_list(rows), "george": datasets.Dataset.from_list(rows[:4])}
    run = federate_trainer(
        small_network(), clients, datasets.Dataset.from_list(rows[:4]), args=arguments(tmp_path / "run"), num_rounds=1,
        processing_class=small_tokenizer(), task=fedelta.Language(num_answers=1, max_new_tokens=2),
    )  # fmt: skip
    assert run.measures["test_loss"] > 0
    assert len(run.predictor().generate(["say 3"])) == 1


def test_the_numbers_of_a_trainer_become_those_of_a_client(tmp_path):
    client = client_of(arguments(tmp_path, weight_decay=0.1, max_steps=7))
    assert (client.lr, client.batch_size, client.local_steps) == (0.01, 4, 7)
    assert client.optimizer == fedelta.AdamW(weight_decay=0.1)
    assert client_of(arguments(tmp_path, optim="sgd")).optimizer == fedelta.Sgd(momentum=0.0)
    with pytest.raises(InputError, match="'gradient_accumulation_steps': 4"):
        client_of(arguments(tmp_path, gradient_accumulation_steps=4))
    with pytest.raises(InputError, match="'adafactor', expected 'sgd' or 'adamw_torch'"):
        client_of(arguments(tmp_path, optim="adafactor"))


def test_texts_without_a_tokenizer_are_refused(tokenizer, tmp_path):
    clients = {"ann": texts()}
    with pytest.raises(ModelError, match="tokenizer"):
        federate_trainer(network(), clients, texts(4), args=arguments(tmp_path / "run"))
    tokenised = {"ann": texts().map(lambda row: tokenizer(row["text"]))}
    with pytest.raises(InputError, match="need padding"):
        federate_trainer(network(), tokenised, tokenised["ann"], args=arguments(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
