"""Tiny models, inputs and engines for the tests of the core; the models are those of `fedelta.testing`."""

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
from fedelta.models.hub import Backbone
from fedelta.params import Params, ParamSpec, TensorSpec, WeightedSum
from fedelta.record.checkpoint import load
from fedelta.record.rundir import CHECKPOINT, CLIENTS, PARTITION
from fedelta.seeds import stream
from fedelta.strategies.base import LocalRule
from fedelta.strategies.local import Plain
from fedelta.tasks.base import Evaluation
from fedelta.testing import small
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.lanes import Lanes

ARCHITECTURES, ReadyInputs, tiny_inputs = small.SMALL_MODELS, small.ReadyInputs, small.small_inputs
NUM_CLASSES = len(small.CLASS_NAMES)
TRANSFORMERS = ("vit", "deit", "bert", "roberta", "distilbert")
CONVOLUTIONAL = ("small-resnet", "resnet")
IMAGE_FAMILIES = ("vit", "deit", *CONVOLUTIONAL)


def tiny_backbone(family: str = "vit", *, seed: int = 0, **sizes: object) -> Backbone:
    """A classifier of `family` with two blocks of width 16, all its tensors drawn."""
    if not sizes and seed == 0:
        return small.small_model(family)
    backbone = small.new_model(family, sizes, NUM_CLASSES)
    small.draw(backbone, family, seed)
    return backbone


def tiny_data(family: str = "vit", num_rows: int = 24, seed: int = 0) -> Examples:
    """Random rows with random labels."""
    return small.small_data(family, num_rows, seed)


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
    by_name = {}
    for client_id in sorted(site.partition):
        drifts = site.memory_of(client_id).adrift
        if drifts:
            by_name[client_id] = {f"local/{name}": drift.value for name, drift in drifts.items()}
            by_name[client_id] |= {f"anchor/{name}": drift.anchor for name, drift in drifts.items()}
    return by_name


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
    by_name = {int(client_id): memories.of(int(client_id)) for client_id in clients}
    return {client_id: memory.flat() for client_id, memory in sorted(by_name.items()) if memory is not None}


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
