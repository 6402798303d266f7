"""From which description a sentence is, with a small BERT, each client with its own data."""

import re

import datasets
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from fedelta.hf import federate_trainer

PAGES = {load.__name__: load().DESCR for load in (load_iris, load_wine, load_breast_cancer, load_diabetes)}
SENTENCES = [(" ".join(text.split()), page) for page, whole in PAGES.items() for text in re.split(r"[.\n]\s", whole)]
SENTENCES = [(text, page) for text, page in SENTENCES if len(text) > 30]

words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
trainer = trainers.WordLevelTrainer(vocab_size=1000, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
words.train_from_iterator([text for text, _ in SENTENCES], trainer)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def rows(start: int, step: int) -> datasets.Dataset:
    """Some sentences, tokenised."""
    names = datasets.ClassLabel(names=sorted(PAGES))
    chosen = SENTENCES[start::step]
    table = {"text": [text for text, _ in chosen], "label": [page for _, page in chosen]}
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    made = datasets.Dataset.from_dict(table, features=features)
    return made.map(lambda row: tokenizer(row["text"], truncation=True, max_length=32))


def compute_metrics(prediction) -> dict[str, float]:
    """The share of right answers."""
    return {"right": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=4, pad_token_id=0, **sizes))
args = TrainingArguments(
    output_dir="runs/texts", learning_rate=5e-3, per_device_train_batch_size=8, num_train_epochs=5, use_cpu=True
)
result = federate_trainer(
    model,
    args=args,
    train_datasets={f"client {number}": rows(number, 5) for number in range(4)},
    eval_dataset=rows(4, 5),
    processing_class=tokenizer,
    compute_metrics=compute_metrics,
    num_rounds=5,
    tuning="full",
)
print(result.summary["metrics"]["right"])
