"""BlazeFL 2: its FedAvg server, and a trainer on its process pool with results in shared memory.

As in its contrib.fedavg, with what a careful user changes: only tuned tensors travel, batches are slices of tensors,
and the model is built once, before the pool of a round copies the process. That process takes one step itself at the
start: oneDNN then has compiled its convolutions, which every worker of every round would do anew otherwise (in W1 more
than a second each).
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.multiprocessing as mp
from benchmarks.peers.loaded import Loaded, load
from benchmarks.peers.talk import options
from blazefl.contrib import FedAvgBaseServerHandler
from blazefl.contrib.fedavg import FedAvgDownlinkPackage, FedAvgProcessPoolUplinkPackage, FedAvgUplinkPackage
from blazefl.core import (
    BaseClientTrainer,
    IPCMode,
    ProcessPoolClientTrainer,
    SHMHandle,
    deserialize_model,
    serialize_model,
)
from torch import nn


@cache
def held(folder: Path) -> tuple[Loaded, nn.ParameterList]:
    """The work and its tuned tensors; processes of a round are forked, and find here what their parent has loaded."""
    loaded = load(folder)
    return loaded, nn.ParameterList(loaded.tuned.values())


@dataclass
class Config:
    """What a worker must know of a client."""

    folder: Path
    cid: int
    round: int
    threads: int


class Trainer(ProcessPoolClientTrainer[FedAvgProcessPoolUplinkPackage, FedAvgDownlinkPackage, Config]):
    """Trains clients in a pool of processes."""

    def __init__(self, folder: Path, num_parallels: int, threads: int, share_dir: Path) -> None:
        self.folder = folder
        self.num_parallels = num_parallels
        self.threads = threads
        self.share_dir = share_dir
        self.device = "cpu"
        self.cache = []
        self.ipc_mode = IPCMode.SHARED_MEMORY
        self.manager = mp.Manager()
        self.stop_event = self.manager.Event()
        self.round = 0
        self.buffer = serialize_model(held(folder)[1])

    def get_client_config(self, cid: int) -> Config:
        return Config(self.folder, cid, self.round, self.threads)

    def prepare_uplink_package_buffer(self) -> FedAvgProcessPoolUplinkPackage:
        return FedAvgProcessPoolUplinkPackage(cid=-1, model_parameters=self.buffer.clone(), data_size=0)

    @staticmethod
    def worker(
        config: Config,
        payload: FedAvgDownlinkPackage,
        device: str,  # noqa: ARG004 of the protocol
        stop_event: threading.Event,  # noqa: ARG004
        *,
        shm_buffer: FedAvgProcessPoolUplinkPackage | None = None,
    ) -> FedAvgProcessPoolUplinkPackage:
        torch.set_num_threads(config.threads)
        loaded, tuned = held(config.folder)
        deserialize_model(tuned, payload.model_parameters)
        loaded.train(loaded.steps(config.round, config.cid), loaded.optimizer())
        shm_buffer.model_parameters.copy_(serialize_model(tuned))
        return FedAvgProcessPoolUplinkPackage(config.cid, SHMHandle(), loaded.work.num_rows)

    def uplink_package(self) -> Iterable[FedAvgProcessPoolUplinkPackage]:
        package, self.cache = self.cache, []
        return package


class SerialTrainer(BaseClientTrainer[FedAvgUplinkPackage, FedAvgDownlinkPackage]):
    """Trains one client after the other, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = []
        self.round = 0

    def local_process(self, payload: FedAvgDownlinkPackage, cid_list: list[int]) -> None:
        loaded, tuned = held(self.folder)
        for cid in cid_list:
            deserialize_model(tuned, payload.model_parameters)
            loaded.train(loaded.steps(self.round, cid), loaded.optimizer())
            self.cache.append(FedAvgUplinkPackage(cid, serialize_model(tuned), loaded.work.num_rows))

    def uplink_package(self) -> Iterable[FedAvgUplinkPackage]:
        package, self.cache = self.cache, []
        return package


class Selector:
    """The tuned tensors of the one model, which is all that the server has to know."""

    def __init__(self, tuned: nn.Module) -> None:
        self.tuned = tuned

    def select_model(self, model_name: str) -> nn.Module:
        return self.tuned


def main() -> None:
    folder, workers, threads, talk = options()
    torch.set_num_threads(threads)
    loaded, tuned = held(folder)
    _take_a_step(loaded)
    num_clients = loaded.work.num_clients
    handler = FedAvgBaseServerHandler(Selector(tuned), "tuned", None, 10**9, num_clients, 1.0, "cpu", 1, seed=0)
    with tempfile.TemporaryDirectory() as share_dir:
        trainer = Trainer(folder, workers, threads, Path(share_dir)) if workers > 1 else SerialTrainer(folder)
        while talk.wait(lambda: loaded.tuned):
            trainer.round += 1
            trainer.local_process(handler.downlink_package(), handler.sample_clients())
            for package in trainer.uplink_package():
                handler.load(package)
        if isinstance(trainer, Trainer):
            trainer.manager.shutdown()


def _take_a_step(loaded: Loaded) -> None:
    start = {name: parameter.detach().clone() for name, parameter in loaded.tuned.items()}
    loaded.train(loaded.steps(1, 0)[:1], loaded.optimizer())
    loaded.put(start)


if __name__ == "__main__":
    main()
