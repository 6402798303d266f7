"""Both sides of a case, on the same tensors and the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from benchmarks.bare import BareLoop, tune
from benchmarks.cases import BUNDLED, STAND_IN, Case
from torch import Tensor

from fedelta.catalog import TUNING_METHODS
from fedelta.codecs.channel import Channel
from fedelta.data.batches import Examples
from fedelta.data.clients import Clients
from fedelta.engine.lanes import LaneEngine
from fedelta.engine.optimizers import Sgd
from fedelta.engine.packs import num_packs
from fedelta.engine.work import ClientSettings
from fedelta.federation.base import Runtime
from fedelta.federation.client import Site
from fedelta.federation.rounds import Federation, Standing, federate
from fedelta.models.bundles import bundled_names
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.runtimes.settings import RuntimeSettings
from fedelta.seeds import stream
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.local import Plain
from fedelta.tasks.base import Evaluation
from fedelta.tasks.labels import Labels
from fedelta.tuning.lanes import Lanes
from fedelta.tuning.lora import Lora

SEED = 7
CNN_IMAGE_SIZE = 28
NUM_CLASSES = 10
RANK = 8
LORA_ALPHA = 16.0
LR = 0.05
MOMENTUM = 0.9

Round = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Pixels:
    """Model inputs that lie ready in memory."""

    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[rows]}


def bare_side(case: Case) -> Round:
    """One call is one round of the bare loop."""
    model = backbone(case).module
    tune(model, case.tuning, rank=RANK, lora_alpha=LORA_ALPHA, generator=stream(SEED, "tuning"))
    pixels, labels, partition = data(case)
    return BareLoop(
        model,
        pixels,
        labels,
        partition,
        batch_size=case.batch_size,
        local_epochs=case.local_epochs,
        lr=LR,
        momentum=MOMENTUM,
        seed=SEED,
    ).round


def fedelta_side(case: Case, places: int = 1, on: Callable[[Site], Runtime] = lambda site: site) -> Round:
    """One call is one round of fedelta: plan, encode, train, check, decode, combine; no evaluation.

    Args:
        case: what is trained.
        places: packs that are trained side by side; with one place the cohort is one pack.
        on: gives the runtime for a site.
    """
    pixels, labels, partition = data(case)
    runtime = RuntimeSettings(lanes=case.lanes)
    model = backbone(case)
    method = Lora(r=RANK, lora_alpha=LORA_ALPHA) if case.tuning == "lora" else TUNING_METHODS[case.tuning]()
    num_lanes = runtime.num_lanes(
        clients_per_round=len(case.sizes), batch_size=case.batch_size, places=places,
        model_scalars=model.num_parameters if case.tuning == "full" else None,
    )  # fmt: skip
    lanes = Lanes(min(num_lanes, method.max_lanes or num_lanes))
    spec = method.apply(model, lanes, stream(SEED, "tuning"))
    client = ClientSettings(
        local_epochs=case.local_epochs, batch_size=case.batch_size, lr=LR, optimizer=Sgd(momentum=MOMENTUM)
    )
    engine = LaneEngine(
        model,
        spec,
        lanes,
        Examples(Pixels(pixels), Labels(labels)),
        client=client,
        rule=Plain(),
        cache_bytes=runtime.cache_mib * 2**20,
    )
    channel = Channel(name=case.codec)
    strategy = FedAvg(clients_per_round=len(case.sizes), num_rounds=1_000_000)
    packs = 1 if places == 1 else num_packs(len(case.sizes), engine.lanes.num, places)
    threads = max(1, torch.get_num_threads() // packs)
    site = Site(engine, partition, channel, SEED, strategy.num_rounds, places=places, threads=threads)
    federation = Federation(
        strategy=strategy,
        runtime=on(site),
        channel=channel,
        spec=spec,
        clients=Clients.of(sorted(partition)),
        seed=SEED,
        evaluate=lambda _: Evaluation({"accuracy": 0.0}),
        effective_steps=float,
        evaluate_every=strategy.num_rounds,
        replies_once=True,
    )
    params = engine.bank.read(0)
    outcomes = federate(federation, Standing(params, strategy.init(params, spec)))
    return lambda: next(outcomes).params


SIDES = {"bare": bare_side, "fedelta": fedelta_side}


def model_name(case: Case) -> str:
    """What the case runs on, for the table."""
    if case.model == "cnn":
        return f"LEAF's CNN with 16 and 32 channels, {case.hidden} hidden"
    if BUNDLED.removeprefix("bundled:") in bundled_names():
        return BUNDLED
    sizes = ", ".join(f"{name} {value}" for name, value in STAND_IN.items() if name != "model_type")
    return f"random ViT ({sizes})"


def backbone(case: Case) -> Backbone:
    """A fresh copy of the network of `case`, always with the same weights."""
    if case.model == "cnn":
        architecture = {"model_type": "femnist-cnn", "channels": [16, 32], "hidden": case.hidden}
        return build(ModelSource(architecture=architecture), tuple(map(str, range(NUM_CLASSES))), seed=SEED)
    bundled = BUNDLED.removeprefix("bundled:") in bundled_names()
    source = ModelSource(source=BUNDLED) if bundled else ModelSource(architecture=STAND_IN)
    return build(source, tuple(map(str, range(NUM_CLASSES))), seed=SEED)


def data(case: Case) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Random images as float32 inputs, labels, and the rows of each client."""
    shape = (
        (1, CNN_IMAGE_SIZE, CNN_IMAGE_SIZE)
        if case.model == "cnn"
        else (3, STAND_IN["image_size"], STAND_IN["image_size"])
    )
    generator = stream(SEED, "data")
    num_rows = sum(case.sizes)
    pixels = torch.randn(num_rows, *shape, generator=generator)
    labels = torch.randint(NUM_CLASSES, (num_rows,), generator=generator)
    return pixels, labels, dict(enumerate(torch.arange(num_rows).split(list(case.sizes))))
