"""fedelta's form of a work, and the files from which the other sides load it."""

from __future__ import annotations

import hashlib
import json
from itertools import repeat
from pathlib import Path

import torch
from benchmarks.peers.dialogues import drawn_dialogues, examples, llama_backbone
from benchmarks.peers.loaded import Mlp
from benchmarks.peers.works import LONGEST, LORA_ALPHA, NUM_CLASSES, RANK, SEED, SHORTEST, TINY, Work
from safetensors.torch import save_file
from torch import Tensor

from fedelta.config import Config, parse_config
from fedelta.data.batches import Examples, FederatedData, batches
from fedelta.experiment import Experiment
from fedelta.modalities.stores import Stored
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone, build
from fedelta.seeds import stream
from fedelta.tasks.labels import Labels
from fedelta.testing.small import ReadyInputs

CLASSES = tuple(map(str, range(NUM_CLASSES)))
# Orders of batches that are drawn; later rounds repeat them.
NUM_ORDERS = 3
NUM_TEST_ROWS = 64


def config_of(work: Work, num_rounds: int, workers: int | str | None = "auto") -> Config:
    """What a user would write; it evaluates once, in its last round.

    Args:
        work: what is done.
        num_rounds: of the run.
        workers: processes that train; None: none.
    """
    lora = {"r": RANK, "lora_alpha": LORA_ALPHA} if work.tuning == "lora" else {}
    return parse_config(
        {
            "seed": SEED,
            "evaluate_every": num_rounds,
            # Replaced where the work has a network of its own.
            "model": {"architecture": TINY if _has_own_network(work) else dict(work.architecture)},
            **({"task": {"name": "language"}} if work.is_language else {}),
            "data": {"source": "digits"},  # required; `Experiment(data=...)` replaces it
            "partition": {"name": "iid", "num_clients": work.num_clients},
            "tuning": {"name": work.tuning, **lora},
            "strategy": {
                "name": "fedavg",
                "clients_per_round": work.cohort or work.num_clients,
                "num_rounds": num_rounds,
            },
            "client": {
                **({"local_steps": work.local_steps} if work.local_steps else {"local_epochs": work.local_epochs}),
                "batch_size": work.batch_size,
                "lr": work.lr,
                "optimizer": {"name": "sgd", "momentum": 0.0},
            },
            "codec": {"name": "float32"},
            "runtime": {"name": "simulation"} if workers is None else {"workers": workers},
        }
    )


def experiment_of(work: Work, num_rounds: int, workers: int | str | None = "auto") -> Experiment:
    """A run of fedelta, with images that lie in memory as a data set's do."""
    config = config_of(work, num_rounds, workers)
    backbone = backbone_of(work, config)
    partition = dict(enumerate(torch.arange(work.num_clients * work.num_rows).split(work.num_rows)))
    train, test = _examples(work, backbone)
    given = backbone if _has_own_network(work) else None
    classes = () if work.is_language else CLASSES
    return Experiment(config, backbone=given, data=FederatedData(train, test, classes, partition))


def _has_own_network(work: Work) -> bool:
    """Whether no section `[model]` describes the network."""
    return work.is_language or work.architecture["model_type"] == "mlp"


def _examples(work: Work, backbone: Backbone) -> tuple[Examples, Examples]:
    """Training and test data."""
    if work.is_language:
        num_words = int(work.architecture["vocab_size"])
        rows = drawn_dialogues(work.num_clients * work.num_rows, num_words, SHORTEST, LONGEST)
        return examples(rows, num_words, LONGEST), examples(rows[:NUM_TEST_ROWS], num_words, LONGEST)
    images, labels = drawn(work)
    train = Examples(_inputs(backbone, images), Labels(labels))
    return train, Examples(_inputs(backbone, images[:NUM_TEST_ROWS]), Labels(labels[:NUM_TEST_ROWS]))


def backbone_of(work: Work, config: Config) -> Backbone:
    """A new network of the work, always with the same weights."""
    if work.is_language:
        return llama_backbone(work.architecture, LONGEST)
    if work.architecture["model_type"] != "mlp":
        return build(config.model, CLASSES, seed=SEED)
    network = Mlp(int(work.architecture["image_size"]), int(work.architecture["hidden"]))
    generator = stream(SEED, "peers", "mlp")
    for tensor in network.parameters():
        tensor.data.uniform_(-0.1, 0.1, generator=generator)
    return Backbone(network.eval(), Anatomy(("classifier",)))


def _inputs(backbone: Backbone, images: Tensor) -> Stored | ReadyInputs:
    """As they lie in memory: images for a model that has a modality, floats for another."""
    if backbone.modality is not None:
        return Stored(images, backbone.modality)
    return ReadyInputs({"pixel_values": images / 127.5 - 1})


def drawn(work: Work) -> tuple[Tensor, Tensor]:
    """Images of all clients, uint8, and labels: noise with a class's own pattern, so that losses fall."""
    side = int(work.architecture["image_size"])
    channels = 3 if work.architecture["model_type"] == "vit" else 1
    generator = stream(SEED, "peers", "data")
    num_rows = work.num_clients * work.num_rows
    labels = torch.randint(NUM_CLASSES, (num_rows,), generator=generator)
    shape = (channels, side, side)
    patterns = torch.randint(0, 128, (NUM_CLASSES, *shape), dtype=torch.uint8, generator=generator)
    noise = torch.randint(0, 128, (num_rows, *shape), dtype=torch.uint8, generator=generator)
    return noise.add_(patterns[labels]), labels


def orders_of(work: Work) -> Tensor:
    """Rows of every step as fedelta draws them, int64 of shape [rounds, clients, steps, batch]."""
    rows = torch.arange(work.num_clients * work.num_rows).split(work.num_rows)
    return torch.stack(
        [
            torch.stack(
                [
                    torch.stack(
                        list(
                            batches(
                                rows[client], work.batch_size, work.steps,
                                repeat(stream(SEED, "batches", number, client)),
                            )
                        )
                    )
                    for client in range(work.num_clients)
                ]
            )
            for number in range(1, NUM_ORDERS + 1)
        ]
    )  # fmt: skip


def prepare(work: Work, cache: Path) -> Path:
    """The folder with the files of `work`, written unless it is there."""
    text = json.dumps(work.as_record(), indent=1)
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:12]
    if (folder / "work.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    experiment = experiment_of(work, 1)
    network = backbone_of(work, experiment.config)
    save_file({**_as_tensors(work, network), "orders": orders_of(work)}, folder / "data.safetensors")
    # Clones: an embedding may be there twice.
    base = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    save_file(base, folder / "base.safetensors")
    save_file(dict(experiment.assembly.params), folder / "start.safetensors")
    (folder / "work.json").write_text(text)
    return folder


def _as_tensors(work: Work, network: Backbone) -> dict[str, Tensor]:
    """Inputs and targets of all rows, as `Loaded` has them."""
    train, _ = _examples(work, network)
    inputs = train.inputs.fetch(torch.arange(len(train)))
    if work.is_language:
        return {"pixels": inputs["input_ids"].where(inputs["attention_mask"] > 0, -1), "labels": inputs["labels"]}
    return {"pixels": inputs["pixel_values"], "labels": drawn(work)[1]}
