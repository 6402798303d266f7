"""The golden runs: what is run, each within a second or two, and which numbers of it are kept.

Between them they visit what clients remember between rounds, every modality, both kinds of natural clients, early
exits, batch norm and a resume. Numbers are taken out of a run's files here and nowhere else, so that a change of their
format changes this file and none of the numbers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tests.inference.adapters import WORDS, write_tokenizer
from tests.small import CONVOLUTIONAL, SMALL, stop_after, write_small
from tests.sounds import write_flat

import fedelta
from fedelta.experiment import Experiment, Result
from fedelta.seeds import stream

_MODEL = SMALL[SMALL.index("[model.arch") : SMALL.index("[data]")]
_STRATEGY = SMALL[SMALL.index("[strategy]") :]
_WINDOWS = ["client.local_epochs=", "strategy.name=fedlama", "strategy.tau=2"]
_EXITS = (
    SMALL.replace(
        '[tuning]\nname = "lora"\nr = 2\n',
        '[[tuning]]\nname = "accumulator"\nnum_heads = 2\nmlp_width = 16\nhead_width = 8\n\n'
        '[[tuning]]\nname = "adapter"\nplacement = "parallel"\nshared = false\nreduction_factor = 4\n',
    )
    + '\n[exits]\ntiers = [1, 2]\ntrain = "sum"\n'
)
_HELD_OUT = "\n[personalization]\nheld_out_clients = 2\nlrs = [0.01, 0.1]\n"
_SPEECH = f"""
seed = 3

{_MODEL}
[data]
source = "SOURCE"
file_pattern = "{{label}}_{{client}}_{{index}}"
test_files = "*_[01].wav"

[data.audio]
sample_rate = 8000
num_mel_bins = 32
num_frames = 24

[partition]
name = "natural"

{_STRATEGY}"""
_TEXT = f"""
seed = 3

[model]
source = "SOURCE"

[tuning]
name = "lora"
r = 2

[data]
source = "TABLE"
label_column = "label"
text_column = "text"
test_fraction = 0.3

[partition]
name = "iid"
num_clients = 5

{_STRATEGY}"""


def small(folder: Path) -> Result:
    """FedAvg with LoRA and float16."""
    return _run(folder, SMALL)


def fedlama_batch_norm(folder: Path) -> Result:
    """Layers of a whole convolutional network at intervals, with running statistics."""
    # In lanes the last bits are others, and at this rate they grow until they are seen.
    return _run(folder, CONVOLUTIONAL, "tuning.name=full", "runtime.lanes=1", *_WINDOWS, "strategy.num_rounds=5")


def local_batch_norm(folder: Path) -> Result:
    """Norms that stay with their client, some of which drop out."""
    return _run(folder, CONVOLUTIONAL, "model.batch_norm=local", "stability.dropout_fraction=0.3")


def scaffold(folder: Path) -> Result:
    """Control variates that clients remember."""
    return _run(
        folder,
        SMALL,
        "strategy.name=scaffold",
        "strategy.num_rounds=4",
        "client.optimizer.name=sgd",
        "client.optimizer.momentum=0.0",
    )


def tiers(folder: Path) -> Result:
    """An accumulator on clients of two depths."""
    return _run(folder, _EXITS)


def personalised(folder: Path) -> Result:
    """The same with two clients held out, which fine-tune afterwards."""
    result = _run(folder, _EXITS + _HELD_OUT)
    fedelta.personalize(result.path)
    return result


def text(folder: Path) -> Result:
    """Sentences of unequal length for a text encoder."""
    return _run(folder, _text_configuration(folder))


def speech(folder: Path) -> Result:
    """Recordings of three speakers, who are the clients."""
    source = write_flat(folder / "tones")
    return _run(folder, _SPEECH.replace("SOURCE", str(source)))


def natural_numbers(folder: Path) -> Result:
    """Clients whose ids are whole numbers in a column, four of seven drawn."""
    natural = ["partition.name=natural", "partition.num_clients=4", "data.client_column=client"]
    return _run(folder, _text_configuration(folder), *natural)


def resumed(folder: Path) -> Result:
    """FedLAMA with clients that drop out, stopped between two rounds of a window and continued."""
    overrides = [*_WINDOWS, "strategy.phi=4", "strategy.num_rounds=8", "stability.dropout_fraction=0.2"]
    path = write_small(folder)
    try:
        Experiment.from_toml(path, overrides).run(folder / "run", on_round=stop_after(3))
    except KeyboardInterrupt:
        return Experiment.from_run(folder / "run").resume(folder / "run")
    raise AssertionError("the run was not stopped")


def on_one_core(run: Callable[[Path], Result]) -> Callable[[Path], Result]:
    """`run` as on a machine with one core: into how many packs a cohort is divided depends on their number."""

    def alone(folder: Path) -> Result:
        with patch("fedelta.runtimes.settings.available_cores", lambda: 1):
            return run(folder)

    return alone


def _with(*overrides: str) -> Callable[[Path], Result]:
    return on_one_core(lambda folder: _run(folder, SMALL, *overrides))


RUNS: dict[str, Callable[[Path], Result]] = {
    run.__name__: on_one_core(run)
    for run in (
        small, fedlama_batch_norm, local_batch_norm, scaffold, tiers, personalised, text, speech,
        natural_numbers, resumed,
    )
}  # fmt: skip
# One for each way to combine; they take as long again, and are in the slow tier.
SLOW_RUNS: dict[str, Callable[[Path], Result]] = {
    **{
        name: _with(f"strategy.name={name}")
        for name in ("fedavgm", "fedadagrad", "fedadam", "fedyogi", "fednova", "fedluar")
    },
    **{name: _with(f"strategy.mean.name={name}") for name in ("uniform", "median", "clipped")},
    "trimmed": _with("strategy.mean.name=trimmed", "strategy.mean.fraction=0.34"),
    "fedlama_auto": _with(
        # At the rate of the other runs the last bits grow until they are seen.
        "client.local_epochs=", "client.lr=0.005", "strategy.name=fedlama-auto", "strategy.share=0.6",
        "strategy.num_rounds=12",
    ),
    "fedlama_median": _with(*_WINDOWS, "strategy.mean.name=median", "strategy.num_rounds=6"),
    "fedprox_late": _with(
        "local_rule.name=fedprox", "stability.examples_per_second=4", "stability.deadline_seconds=8",
        "strategy.min_replies=2", "strategy.num_rounds=5",
    ),
}  # fmt: skip


def numbers(result: Result) -> dict[str, Any]:
    """What is kept of a run: its records, and the length of every tensor at its end."""
    records = [json.loads(line) for line in (result.path / "rounds.jsonl").read_text().splitlines()]
    kept: dict[str, Any] = {
        "rounds": [_of_round(record) for record in records],
        "lengths": {name: float(tensor.double().norm()) for name, tensor in result.params.items()},
    }
    personal = result.path / "personalization.json"
    if personal.exists():
        kept["personal"] = _of_clients(json.loads(personal.read_text()))
    return kept


def _of_round(record: dict[str, Any]) -> dict[str, Any]:
    always = (
        "round", "train_loss_nats", "delta_norm", "num_examples", "synced_fraction",
        "simulated_seconds", "cohort", "uplink_bytes", "downlink_bytes", "cumulative_bytes",
    )  # fmt: skip
    sometimes = ("interval_rounds", "unit_discrepancy", "score")
    measures = record["measures"] or {}
    by_exit = record.get("measures_by_exit", {})
    rejections = [[item["client_id"], item["cause"]] for item in record["rejections"]]
    return (
        {key: record[key] for key in always}
        | {"accuracy": measures.get("accuracy"), "test_loss_nats": measures.get("loss_nats")}
        | {f"{name}_by_exit": values for name, values in by_exit.items()}
        | {key: record[key] for key in sometimes if key in record}
        | {"rejections": rejections}
    )


def _of_clients(record: dict[str, Any]) -> dict[str, list[list[Any]]]:
    keys = ("client_id", "num_train", "num_eval", "lr", "accuracy_before", "accuracy_after", "loss_nats_after")
    return {
        scope: [[row[key] for key in keys] for row in result["clients"]] for scope, result in record["scopes"].items()
    }


def _run(folder: Path, configuration: str, *overrides: str) -> Result:
    return Experiment.from_toml(write_small(folder, text=configuration), overrides).run(folder / "run")


def _text_configuration(folder: Path) -> str:
    """A tiny checkpoint with a tokenizer, and a table of sentences that tell their class by a word."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(WORDS) + 2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, pad_token_id=0, num_labels=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder / "bert")
    write_tokenizer(folder / "bert")
    draw = stream(0, "golden", "sentences")
    with (folder / "sentences.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "client"])
        for index in range(70):
            animal = ("cat", "dog")[index % 2]
            length = int(torch.randint(1, 6, (), generator=draw))
            others = [WORDS[place] for place in torch.randint(4, len(WORDS), (length,), generator=draw)]
            table.writerow([" ".join(["the", animal, *others]), animal, 100 - 10 * (index % 7)])
    return _TEXT.replace("SOURCE", str(folder / "bert")).replace("TABLE", str(folder / "sentences.csv"))
