"""What the user of a Trainer has, federated: the same model, data sets, collator and metrics."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tests.small_language import dialogues, small_network, small_tokenizer

import fedelta
from fedelta import hf_arguments
from fedelta.errors import InputError, ModelError
from fedelta.hf import federate_trainer

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

    usual = {"learning_rate": 0.01, "per_device_train_batch_size": 4, "num_train_epochs": 1, "use_cpu": True}
    return TrainingArguments(output_dir=str(out), **(usual | others))


def read(out: Path, **others: Any) -> hf_arguments.Arguments:
    """What arguments become for a run of 20 rounds."""
    return hf_arguments.read_arguments(arguments(out, **others), 20)


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
    client = read(tmp_path, weight_decay=0.1, max_steps=7, gradient_accumulation_steps=3).client
    assert (client.lr, client.batch_size, client.local_steps) == (0.01, 4 * 3, 7)
    assert client.optimizer == fedelta.AdamW(weight_decay=0.1)
    assert read(tmp_path, optim="sgd").client.optimizer == fedelta.Sgd(momentum=0.0)
    assert client.schedule == fedelta.Linear()
    # A tenth of 20 rounds.
    warm = read(tmp_path, lr_scheduler_type="cosine", warmup_steps=0.1).client
    assert warm.schedule == fedelta.Cosine(warmup_rounds=2)
    assert read(tmp_path, lr_scheduler_type="constant").client.schedule == fedelta.Constant()
    given = read(tmp_path, bf16=True, activation_checkpointing=True, seed=7)
    assert given.runtime == {"compute_dtype": "bfloat16", "device": "cpu", "gradient_checkpointing": True}
    assert given.seed == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": "adafactor"}, "'adafactor', expected 'sgd' or 'adamw_torch'"),
        ({"lr_scheduler_type": "polynomial"}, "'polynomial', expected 'linear', 'cosine'"),
        ({"warmup_steps": 100}, "expected a share of the rounds"),
        ({"num_train_epochs": 0.5}, "expected a whole number for each round"),
        ({"label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0}, r"'label_smoothing_factor': 0.1, 'neftune"),
        ({"max_grad_norm": 0.5}, r"'max_grad_norm': 0.5(.|\n)*set it to 0"),
        ({"data_seed": 3}, "'data_seed': 3"),
        ({"dataloader_drop_last": True}, "'dataloader_drop_last': True"),
        ({"torch_compile": True}, "'torch_compile': True"),
    ],
)  # fmt: skip
def test_arguments_that_a_client_does_not_follow_are_refused_by_name(change: dict[str, Any], message: str, tmp_path):
    with pytest.raises(InputError, match=message):
        read(tmp_path, **change)


def test_arguments_without_effect_are_named(tmp_path, caplog):
    read(tmp_path, logging_steps=5, save_strategy="no", dataloader_num_workers=2)
    assert "'dataloader_num_workers', 'logging_steps', 'save_strategy' have no effect" in caplog.text
    caplog.clear()
    read(tmp_path)
    assert "no effect" not in caplog.text


def test_every_argument_of_a_trainer_is_mapped_noted_or_refused(tmp_path):
    plain = arguments(tmp_path)
    known = {field.name for field in dataclasses.fields(plain)}
    assert known >= hf_arguments._MAPPED
    assert all(any(name.startswith(start) for name in known) for start in hf_arguments._WITHOUT_EFFECT)


def test_callbacks_are_refused(tokenizer, tmp_path):
    from transformers import EarlyStoppingCallback

    with pytest.raises(InputError, match=r"`callbacks` has 'EarlyStoppingCallback'(.|\n)*`on_round=`"):
        federate_trainer(network(), {"ann": texts()}, texts(4), callbacks=[EarlyStoppingCallback()])


def tokens_of(tokenizer: Any, num: int) -> datasets.Dataset:
    rows = [{"text": f"{row['prompt']} {row['response']}"} for row in dialogues(num)]
    made = datasets.Dataset.from_list(rows)
    return made.map(lambda row: tokenizer(row["text"]), remove_columns=["text"])


@pytest.mark.parametrize("has_labels", [True, False])
def test_tokens_of_a_causal_model_are_trained_as_a_trainer_would(has_labels: bool, tokenizer, tmp_path):
    from transformers import DataCollatorForLanguageModeling

    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    sets = [tokens_of(tokenizer, num) for num in (8, 6)]
    if has_labels:
        sets = [rows.map(lambda row: {"labels": row["input_ids"]}) for rows in sets]
    run = federate_trainer(
        small_network(), {"ann": sets[0]}, sets[1], args=arguments(tmp_path / "run"), num_rounds=1,
        processing_class=tokenizer, data_collator=None if has_labels else collator,
    )  # fmt: skip
    module, batch = run.module(), collator([{"input_ids": row} for row in sets[1]["input_ids"]])
    with torch.no_grad():
        expected = module(**batch).loss.item()  # the mean over all tokens that are predicted
    assert run.measures["test_loss"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(InputError, match="needs logits"):
        federate_trainer(
            small_network(), {"ann": sets[0]}, sets[1], compute_metrics=accuracy, processing_class=tokenizer
        )


def test_a_transform_of_a_data_set_sees_the_columns_that_the_model_does_not_take(tokenizer, tmp_path):
    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        return {
            **tokenizer(batch["text"], padding="max_length", truncation=True, max_length=12),
            "labels": batch["label"],
        }

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "attention_mask", "labels")}

    made = [rows.with_transform(transform) for rows in (texts(), texts(6))]
    run = federate_trainer(
        network(), {"ann": made[0]}, made[1], args=arguments(tmp_path / "run"), num_rounds=1, data_collator=collate
    )
    assert run.measures["accuracy"] >= 0


def test_a_processor_of_another_kind_is_refused_without_a_temporary_path(tokenizer, tmp_path):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    with pytest.raises(ModelError) as raised:
        federate_trainer(
            network(),
            {"ann": texts()},
            texts(4),
            processing_class=ViTImageProcessorPil(),
            args=arguments(tmp_path / "r"),
        )
    assert "ViTImageProcessorPil" in str(raised.value)
    assert "/tmp" not in str(raised.value)


def test_texts_without_a_tokenizer_are_refused(tokenizer, tmp_path):
    clients = {"ann": texts()}
    with pytest.raises(ModelError, match="tokenizer"):
        federate_trainer(network(), clients, texts(4), args=arguments(tmp_path / "run"))
    tokenised = {"ann": texts().map(lambda row: tokenizer(row["text"]))}
    with pytest.raises(InputError, match="need padding"):
        federate_trainer(network(), tokenised, tokenised["ann"], args=arguments(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
