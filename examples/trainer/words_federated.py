"""A causal language model on the descriptions of four data sets, each client with its own."""

import datasets
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    TrainingArguments,
)

import fedelta
from fedelta.hf import federate_trainer

base = fedelta.bundled_path("words-micro")
tokenizer = AutoTokenizer.from_pretrained(base)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
PAGES = {load.__name__: load().DESCR for load in (load_iris, load_wine, load_breast_cancer, load_diabetes)}


def rows(page: str, part: slice) -> datasets.Dataset:
    """Some lines of a description, tokenised."""
    lines = [line for line in PAGES[page].splitlines() if len(line) > 20][part]
    made = datasets.Dataset.from_dict({"text": lines})
    return made.map(lambda row: tokenizer(row["text"], truncation=True, max_length=48), remove_columns=["text"])


model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
args = TrainingArguments(
    output_dir="runs/words", learning_rate=1e-3, per_device_train_batch_size=8, num_train_epochs=2, use_cpu=True
)
result = federate_trainer(
    model,
    args=args,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    train_datasets={page: rows(page, slice(4, 14)) for page in PAGES},
    processing_class=tokenizer,
    num_rounds=5,
    tuning="full",
    eval_dataset=datasets.concatenate_datasets([rows(page, slice(4)) for page in PAGES]),
)
print(result.measures["test_loss"])
