"""A causal language model on the descriptions of four data sets, with a Trainer, all data in one place."""

import datasets
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

import fedelta

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
trainer = Trainer(
    model,
    args,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    train_dataset=datasets.concatenate_datasets([rows(page, slice(4, 14)) for page in PAGES]),
    eval_dataset=datasets.concatenate_datasets([rows(page, slice(4)) for page in PAGES]),
)
trainer.train()
print(trainer.evaluate()["eval_loss"])
