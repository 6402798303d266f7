"""Tiny models, inputs and engines for the tests of the core.

Every tensor of a tiny model is drawn, biases and scales too: with the zeros and ones that a fresh model starts
from, an addition that was forgotten would not be seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor

from fedelta.data.augmentation import Augmentation
from fedelta.data.batches import Examples
from fedelta.engine.exits import ExitSettings
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import Sgd
from fedelta.engine.work import ClientSettings, Job
from fedelta.federation.client import Site
from fedelta.federation.memory import Memories
from fedelta.models.anatomy import anatomy_of
from fedelta.models.hub import Backbone
from fedelta.models.source import ModelSource, read_config
from fedelta.params import Params, ParamSpec, TensorSpec, WeightedSum
from fedelta.record.checkpoint import load
from fedelta.record.rundir import CHECKPOINT, CLIENTS, PARTITION
from fedelta.seeds import stream
from fedelta.strategies.base import LocalRule
from fedelta.strategies.local import Plain
from fedelta.tasks.base import Evaluation
from fedelta.tasks.labels import Labels
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.lanes import Lanes

NUM_CLASSES = 3
_IMAGE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
_TEXT = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, dict[str, object]] = {
    "vit": {"model_type": "vit"} | _IMAGE,
    "deit": {"model_type": "deit"} | _IMAGE,
    "bert": {"model_type": "bert"} | _TEXT,
    "roberta": {"model_type": "roberta"} | _TEXT,
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 20,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": 12,
    },
    "small-resnet": {
        "model_type": "resnet20",
        "stem_width": 4,
        "widths": [4, 8],
        "blocks_per_stage": 1,
        "image_size": 8,
    },
    "resnet": {
        "model_type": "resnet",
        # Not less: https://github.com/uxlfoundation/oneDNN/issues/6035
        "embedding_size": 16,
        "hidden_sizes": [16, 24],
        "depths": [1, 1],
        "layer_type": "basic",
    },
}
TRANSFORMERS = ("vit", "deit", "bert", "roberta", "distilbert")
CONVOLUTIONAL = ("small-resnet", "resnet")
IMAGE_FAMILIES = ("vit", "deit", *CONVOLUTIONAL)


@dataclass(frozen=True)
class ReadyInputs:
    """Inputs that need no transform: keyword tensors, rows first."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in self.tensors.items()}


def tiny_backbone(family: str = "vit", *, seed: int = 0, **sizes: object) -> Backbone:
    """A classifier of `family` with two blocks of width 16, all its tensors drawn."""
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    auto = AutoModelForImageClassification if family in IMAGE_FAMILIES else AutoModelForSequenceClassification
    config = read_config(ModelSource(architecture=ARCHITECTURES[family] | sizes))
    config.num_labels = NUM_CLASSES
    config.architectures = []
    module = auto.from_config(config).eval()
    generator = stream(seed, "tiny", family)
    spread = 0.1 if family == "resnet" else 0.2  # it is wider than the others, and would not stay finite
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator) + is_scale)
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.2 * torch.rand(buffer.shape, generator=generator))
    return Backbone(module, anatomy_of(module, config.model_type))


def tiny_inputs(family: str, num_rows: int, seed: int = 0) -> ReadyInputs:
    """Random rows that a tiny model of `family` takes; texts differ in length."""
    generator = stream(seed, "inputs", family)
    if family in IMAGE_FAMILIES:
        size = 32 if family == "resnet" else 8  # its stem and its stages divide it by 8
        return ReadyInputs({"pixel_values": torch.randn(num_rows, 3, size, size, generator=generator)})
    lengths = torch.randint(3, 7, (num_rows, 1), generator=generator)
    mask = (torch.arange(6) < lengths).long()
    tokens = torch.randint(2, 20, (num_rows, 6), generator=generator) * mask
    return ReadyInputs({"input_ids": tokens, "attention_mask": mask})


def tiny_data(family: str = "vit", num_rows: int = 24, seed: int = 0) -> Examples:
    """Random rows with random labels."""
    labels = torch.randint(0, NUM_CLASSES, (num_rows,), generator=stream(seed, "labels"))
    return Examples(tiny_inputs(family, num_rows, seed), Labels(labels))


def tiny_engine(
    method: TuningMethod,
    data: Examples,
    *,
    family: str = "vit",
    lanes: int = 1,
    client: ClientSettings | None = None,
    rule: LocalRule | None = None,
    cache_bytes: int = 0,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    augmentation: Augmentation | None = None,
    exits: ExitSettings | None = None,
    **sizes: object,
) -> tuple[LaneEngine, Backbone]:
    """An engine on a fresh tiny model, and that model; equal arguments give equal tensors."""
    backbone = tiny_backbone(family, **sizes)
    shared = Lanes(min(lanes, method.max_lanes or lanes))
    spec = method.apply(backbone, shared, stream(0, "tuning"))
    client = client or ClientSettings(batch_size=4, lr=0.05, optimizer=Sgd())
    engine = LaneEngine(
        backbone, spec, shared, data, client=client, rule=rule or Plain(), cache_bytes=cache_bytes,
        compute_dtype=compute_dtype, augmentation=augmentation, exits=exits or ExitSettings(),
    )  # fmt: skip
    return engine, backbone


def start_of(engine: LaneEngine) -> Params:
    """The tensors that the model starts with."""
    return engine.bank.read(0)


def jobs_for(sizes: Sequence[int], anchor: Params, *, seed: int = 0) -> list[Job]:
    """One job a client; client i owns the next `sizes[i]` rows."""
    rows = torch.arange(sum(sizes)).split(list(sizes))
    return [
        Job(
            client,
            own,
            anchor,
            order=repeat(stream(seed, "batches", client)),
            noise=stream(seed, "dropout", client),
            augmentation=repeat(stream(seed, "augmentation", client)),
        )
        for client, own in enumerate(rows)
    ]


def deltas_of(engine: LaneEngine, jobs: Sequence[Job], lr: float = 0.05) -> dict[int, Params]:
    """Client id to the delta of its training."""
    return {trained.client_id: trained.delta for trained in engine.train(jobs, lr)}


def spec_of(**shapes: tuple[int, ...]) -> ParamSpec:
    """A specification in the order given, every tensor its own group."""
    return ParamSpec({name: TensorSpec(shape, name) for name, shape in shapes.items()})


def weighted_mean(updates: Iterable[tuple[float, Mapping[str, Tensor]]]) -> Params:
    """Of pairs of weight and tensors, added in this order."""
    total = WeightedSum()
    for weight, tensors in updates:
        total.add(weight, tensors)
    return total.mean()


def assert_same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    """Equal names in equal order, and equal tensors to the last bit."""
    assert list(left) == list(right)
    differing = [name for name in left if not torch.equal(left[name], right[name])]
    assert not differing


def assert_close(left: Mapping[str, Tensor], right: Mapping[str, Tensor], *, rtol: float, atol: float) -> None:
    """Equal names in equal order, and tensors that agree to a tolerance."""
    assert list(left) == list(right)
    for name in left:
        torch.testing.assert_close({name: left[name]}, {name: right[name]}, rtol=rtol, atol=atol)


def randomise(params: Mapping[str, Tensor], generator: Generator, scale: float = 0.1) -> Params:
    """`params` with noise added."""
    return {
        name: tensor + scale * torch.randn(tensor.shape, generator=generator) for name, tensor in params.items()
    }  # fmt: skip


def evaluated(accuracy: float = 0.0, loss: float = 0.0, by_exit: tuple[float, ...] = ()) -> Evaluation:
    """An evaluation of a classification."""
    return Evaluation({"accuracy": accuracy, "loss_nats": loss}, {"accuracy": by_exit} if by_exit else {})


def adrift(site: Site) -> dict[int, Params]:
    """Clients that have tensors adrift to these, `local/NAME` as trained and `anchor/NAME` as downloaded."""
    found = {}
    for client_id in sorted(site.partition):
        drifts = site.memory_of(client_id).adrift
        if drifts:
            found[client_id] = {f"local/{name}": drift.value for name, drift in drifts.items()}
            found[client_id] |= {f"anchor/{name}": drift.anchor for name, drift in drifts.items()}
    return found


def remembered(site: Site) -> dict[int, Params]:
    """Clients that have taken part to what they remember for the strategy."""
    memories = {client_id: site.memories.of(client_id) for client_id in sorted(site.partition)}
    return {client_id: memory.remembered for client_id, memory in memories.items() if memory is not None}


def kept(site: Site) -> dict[int, Params]:
    """Clients that have tensors of their own to these."""
    return dict(site.memories.local_only())


def memories_in(run: Path) -> dict[int, Params]:
    """Clients that keep something in a run directory to its tensors, by `part/name`, as the last checkpoint has it."""
    memories = Memories()
    memories.restore(run / CLIENTS, load(run / CHECKPOINT).memory_mark)
    clients = json.loads((run / PARTITION).read_text())["clients"]
    found = {int(client_id): memories.of(int(client_id)) for client_id in clients}
    return {client_id: memory.flat() for client_id, memory in sorted(found.items()) if memory is not None}


def assert_same_memories(left: Path, right: Path) -> None:
    """Of two run directories: what clients keep, to the last bit."""
    ours, theirs = memories_in(left), memories_in(right)
    assert ours.keys() == theirs.keys()
    for client_id, tensors in ours.items():
        assert_same_bits(tensors, theirs[client_id])


@dataclass(frozen=True)
class Kindless:
    """Targets that know no kinds of rows."""

    values: Tensor
    strata: None = None

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, rows: Tensor) -> Tensor:
        return self.values[rows]

    def select(self, rows: Tensor) -> Kindless:
        return Kindless(self.values[rows])
