"""The sides of gpu.py: each is made from a task and gives, at every call, the params after another round.

pfl and BlazeFL are written as their own examples are; their clients use plain modules of transformers and PEFT.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import repeat

import torch
from torch import Tensor, nn

from fedelta.assembly.run import assemble
from fedelta.config import parse_config
from fedelta.data.batches import Examples, FederatedData, batches
from fedelta.federation.rounds import Standing, federate
from fedelta.models.hub import Backbone, build
from fedelta.models.source import ModelSource
from fedelta.seeds import stream
from fedelta.tasks.labels import Labels

SEED = 7
RANK, ALPHA = 8, 16
CLASSES = tuple(map(str, range(10)))
LR = 0.02
MANY = 1_000_000


@dataclass(frozen=True)
class Task:
    """The work of a round.

    Args:
        architecture: of the network, in transformers' words.
        device: cuda or cpu.
        num_clients: all take part in every round.
        num_rows: images of each client.
        batch_size: images of a client's step.
        dtype: bfloat16 is autocast on every side.
    """

    architecture: Mapping[str, object]
    device: str
    num_clients: int = 8
    num_rows: int = 128
    batch_size: int = 8
    dtype: str = "bfloat16"

    @property
    def num_steps(self) -> int:
        """Of a client in a round, which is one pass over its images."""
        return -(-self.num_rows // self.batch_size)

    def steps(self, round: int, client: int) -> list[Tensor]:
        """The rows of each step of a client, as fedelta draws them."""
        rows = torch.arange(client * self.num_rows, (client + 1) * self.num_rows)
        generators = repeat(stream(SEED, "batches", round, client))
        return [batch.to(self.device) for batch in batches(rows, self.batch_size, self.num_steps, generators)]

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16")


@dataclass(frozen=True)
class Round:
    """A side: the params that it starts from, and what does a round and returns the params after it."""

    start: Mapping[str, Tensor]
    call: Callable[[], Mapping[str, Tensor]]

    def __call__(self) -> Mapping[str, Tensor]:
        return self.call()


@dataclass(frozen=True)
class _Ready:
    """Images that lie on the GPU."""

    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[rows.to(self.pixels.device)]}


@lru_cache(maxsize=1)
def _drawn(num_rows: int, side: int, device: str) -> tuple[Tensor, Tensor]:
    """Images and labels of all clients."""
    generator = stream(SEED, "data")
    pixels = torch.randn(num_rows, 3, side, side, generator=generator)
    return pixels.to(device), torch.randint(len(CLASSES), (num_rows,), generator=generator)


def _data(task: Task) -> tuple[Tensor, Tensor]:
    return _drawn(task.num_clients * task.num_rows, int(task.architecture["image_size"]), task.device)


def _backbone(task: Task) -> Backbone:
    return build(ModelSource(architecture=dict(task.architecture)), CLASSES, seed=SEED)


def fedelta(task: Task, lanes: int) -> Round:
    """Rounds of a run: plan, encode, train, check, decode, combine; without evaluation and files."""
    pixels, labels = _data(task)
    rows = Examples(_Ready(pixels), Labels(labels))
    partition = dict(enumerate(torch.arange(len(pixels)).split(task.num_rows)))
    data = FederatedData(rows, Examples(_Ready(pixels[:8]), Labels(labels[:8])), CLASSES, partition)
    config = parse_config(
        {
            "seed": SEED,
            "evaluate_every": MANY,
            "model": {"architecture": dict(task.architecture)},
            "data": {"source": "digits"},  # required; `data` replaces it
            "partition": {"name": "iid", "num_clients": task.num_clients},
            "tuning": {"name": "lora", "r": RANK, "lora_alpha": ALPHA},
            "strategy": {"name": "fedavg", "clients_per_round": task.num_clients, "num_rounds": MANY},
            "client": {"batch_size": task.batch_size, "lr": LR, "optimizer": {"name": "sgd", "momentum": 0.0}},
            "codec": {"name": "float32"},
            "runtime": {"name": "simulation", "device": task.device, "lanes": lanes, "compute_dtype": task.dtype},
        }
    )
    assembly = assemble(config, backbone=_backbone(task), data=data)
    state = assembly.federation.strategy.init(assembly.params, assembly.spec)
    outcomes = federate(assembly.federation, Standing(assembly.params, state))
    return Round(assembly.params, lambda: next(outcomes).params)


class Peers:
    """What the other sides share: PEFT's model on the GPU, the data, and a client's steps."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.pixels, labels = _data(task)
        self.labels = labels.to(task.device)
        self.model = _peft_model(task)
        self.tuned = _tuned(self.model)
        self.start = {name: parameter.detach().clone() for name, parameter in self.tuned.items()}

    def loss(self, pixels: Tensor, labels: Tensor, model: nn.Module | None = None) -> Tensor:
        with self.task.autocast():
            logits = (model or self.model)(pixel_values=pixels).logits
        return nn.functional.cross_entropy(logits.float(), labels)

    def train(self, round: int, client: int, model: nn.Module, tuned: Mapping[str, nn.Parameter]) -> None:
        """A client's steps, from the values that the model has."""
        optimizer = torch.optim.SGD(tuned.values(), lr=LR, fused=True)
        for rows in self.task.steps(round, client):
            optimizer.zero_grad()
            self.loss(self.pixels[rows], self.labels[rows], model).backward()
            optimizer.step()


def _peft_model(task: Task) -> nn.Module:
    """PEFT's LoRA, with the values that fedelta draws."""
    from peft import LoraConfig, get_peft_model

    from fedelta.tuning.lanes import Lanes
    from fedelta.tuning.lora import Lora

    ours = _backbone(task)
    spec = Lora(r=RANK, lora_alpha=ALPHA).apply(ours, Lanes(1), stream(SEED, "tuning"))
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    model = get_peft_model(_backbone(task).module, config).eval()
    with torch.no_grad():
        for name, parameter in _tuned(model).items():
            parameter.copy_(ours.module.get_parameter(name)[0])
    assert set(_tuned(model)) == set(spec)
    return model.to(task.device)


def _tuned(model: nn.Module) -> dict[str, nn.Parameter]:
    """PEFT's `base_model.model.vit.….lora_A.default.weight` is `vit.….lora_A` in fedelta."""
    tuned = {}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = path.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
            tuned[name.replace(".default.weight", "")] = parameter
    return tuned


def bare(task: Task) -> Round:
    """Plain PyTorch and PEFT, one client after the other; nothing encoded or checked."""
    peers, params, numbers = Peers(task), {}, itertools.count(1)
    params |= peers.start

    @torch.no_grad()
    def put() -> None:
        for name, parameter in peers.tuned.items():
            parameter.copy_(params[name])

    def round() -> Mapping[str, Tensor]:
        number, mean = next(numbers), {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        for client in range(task.num_clients):
            put()
            peers.train(number, client, peers.model, peers.tuned)
            for name, parameter in peers.tuned.items():
                mean[name].add_(parameter.detach(), alpha=1 / task.num_clients)
        params.update(mean)
        return params

    return Round(peers.start, round)


def pfl(task: Task) -> Round:
    """pfl-research: `FederatedAveraging` with its simulated backend; a thread that waits after every round."""
    import numpy as np
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    peers = Peers(task)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = peers.model

        def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
            return peers.loss(pixels, labels)

        def metrics(self, pixels: Tensor, labels: Tensor) -> dict[str, Weighted]:
            return {"loss": Weighted(peers.loss(pixels, labels).item() * len(labels), len(labels))}

    class Rounds(TrainingProcessCallback):
        number = 1

        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            self.number += 1
            turns.done()
            return False, Metrics()

    turns, rounds = _Turns(), Rounds()

    def dataset_of(client: int) -> PyTorchTensorDataset:
        rows = torch.cat(task.steps(rounds.number, client))  # pfl goes through a data set in its order
        return PyTorchTensorDataset((peers.pixels[rows], peers.labels[rows]), user_id=str(client))

    def run() -> None:
        np.random.seed(0)  # noqa: NPY002 which pfl draws from
        clients = itertools.cycle(range(task.num_clients))
        data = FederatedDataset(dataset_of, lambda: next(clients))
        FederatedAveraging().run(
            algorithm_params=NNAlgorithmParams(
                central_num_iterations=MANY,
                evaluation_frequency=MANY,
                train_cohort_size=task.num_clients,
                val_cohort_size=0,
            ),
            backend=SimulatedBackend(training_data=data, val_data=data),
            model=PyTorchModel(
                Network(),
                local_optimizer_create=partial(torch.optim.SGD, fused=True),
                central_optimizer=torch.optim.SGD(peers.tuned.values(), lr=1.0),
            ),
            model_train_params=NNTrainHyperParams(
                local_num_epochs=1, local_learning_rate=LR, local_batch_size=task.batch_size
            ),
            callbacks=[rounds],
        )

    def round() -> Mapping[str, Tensor]:
        turns.next()
        return peers.tuned

    turns.start(run)
    return Round(peers.start, round)


class _Turns:
    """A program in a thread of its own, which goes on from one `done` to the next at every `next`."""

    def __init__(self) -> None:
        self._begin, self._end = queue.Queue(), queue.Queue()

    def start(self, run: Callable[[], None]) -> None:
        threading.Thread(target=self._guarded, args=(run,), daemon=True).start()

    def next(self) -> None:
        self._begin.put(None)
        if (problem := self._end.get()) is not None:
            raise problem

    def done(self) -> None:
        self._end.put(None)
        self._begin.get()

    def _guarded(self, run: Callable[[], None]) -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        try:
            self._begin.get()
            run()
        except BaseException as error:  # noqa: BLE001 raised again by who waits
            self._end.put(error)


def blazefl(task: Task, num_threads: int = 2) -> Round:
    """BlazeFL: FedAvg's server, and its thread pool, each thread with a model of its own on the GPU."""
    from blazefl.contrib import FedAvgBaseServerHandler
    from blazefl.contrib.fedavg import FedAvgDownlinkPackage, FedAvgUplinkPackage
    from blazefl.core import ThreadPoolClientTrainer, deserialize_model, serialize_model

    peers, models = Peers(task), queue.Queue()
    for _ in range(num_threads):
        model = copy.deepcopy(peers.model)
        models.put((model, _tuned(model)))

    class Trainer(ThreadPoolClientTrainer[FedAvgUplinkPackage, FedAvgDownlinkPackage]):
        def __init__(self) -> None:
            self.num_parallels, self.device, self.device_count = num_threads, task.device, 1
            self.cache, self.round, self.stop_event = [], 0, threading.Event()

        def worker(self, cid, device, payload, stop_event):
            model, tuned = models.get()
            part = nn.ParameterList(tuned.values())
            deserialize_model(part, payload.model_parameters)
            peers.train(self.round, cid, model, tuned)
            package = FedAvgUplinkPackage(cid, serialize_model(part), task.num_rows)
            models.put((model, tuned))
            return package

        def uplink_package(self):
            package, self.cache = self.cache, []
            return package

    class Selector:
        def select_model(self, model_name: str) -> nn.Module:
            return nn.ParameterList(peers.tuned.values())

    trainer = Trainer()
    handler = FedAvgBaseServerHandler(Selector(), "tuned", None, MANY, task.num_clients, 1.0, task.device, 1, seed=0)

    def round() -> Mapping[str, Tensor]:
        trainer.round += 1
        trainer.local_process(handler.downlink_package(), handler.sample_clients())
        for package in trainer.uplink_package():
            handler.load(package)
        return peers.tuned

    return Round(peers.start, round)


SIDES: dict[str, Callable[[Task], Round]] = {
    "lanes": lambda task: fedelta(task, lanes=task.num_clients),
    "one": lambda task: fedelta(task, lanes=1),
    "bare": bare,
    "pfl": pfl,
    "blazefl": blazefl,
}
