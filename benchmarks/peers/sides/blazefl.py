"""BlazeFL 2: its FedAvg server, and a trainer on its process pool with results in shared memory.

As in its contrib.fedavg, with what a careful user changes: only tuned tensors travel, batches are slices of tensors, and
the model is built once, before the pool of a round copies the process. Of its two ways of exchange, shared memory is
the faster one here.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing as mp
from benchmarks.peers.loaded import Loaded, load
from benchmarks.peers.talk import options
from blazefl.contrib import FedAvgBaseServerHandler
from blazefl.contrib.fedavg import FedAvgDownlinkPackage, FedAvgProcessPoolUplinkPackage
from blazefl.core import IPCMode, ProcessPoolClientTrainer, SHMHandle, deserialize_model, serialize_model
from torch import nn

# The pool of each round is forked, and finds the work here.
LOADED: Loaded
TUNED: nn.ParameterList


@dataclass
class Config:
    """What a worker must know of a client."""

    cid: int
    round: int
    threads: int


class Trainer(ProcessPoolClientTrainer[FedAvgProcessPoolUplinkPackage, FedAvgDownlinkPackage, Config]):
    """Trains clients in a pool of processes."""

    def __init__(self, num_parallels: int, threads: int, share_dir: Path) -> None:
        self.num_parallels = num_parallels
        self.threads = threads
        self.share_dir = share_dir
        self.device = "cpu"
        self.cache = []
        self.ipc_mode = IPCMode.SHARED_MEMORY
        self.manager = mp.Manager()
        self.stop_event = self.manager.Event()
        self.round = 0
        self.buffer = serialize_model(TUNED)

    def get_client_config(self, cid: int) -> Config:
        return Config(cid, self.round, self.threads)

    def prepare_uplink_package_buffer(self) -> FedAvgProcessPoolUplinkPackage:
        return FedAvgProcessPoolUplinkPackage(cid=-1, model_parameters=self.buffer.clone(), data_size=0)

    @staticmethod
    def worker(
        config: Config,
        payload: FedAvgDownlinkPackage,
        device: str,
        stop_event: threading.Event,
        *,
        shm_buffer: FedAvgProcessPoolUplinkPackage | None = None,
    ) -> FedAvgProcessPoolUplinkPackage:
        torch.set_num_threads(config.threads)
        deserialize_model(TUNED, payload.model_parameters)
        LOADED.train(LOADED.steps(config.round, config.cid), LOADED.optimizer())
        shm_buffer.model_parameters.copy_(serialize_model(TUNED))
        return FedAvgProcessPoolUplinkPackage(config.cid, SHMHandle(), LOADED.work.num_rows)

    def uplink_package(self) -> Iterable[FedAvgProcessPoolUplinkPackage]:
        package, self.cache = self.cache, []
        return package


class Selector:
    """The tuned tensors of the one model, which is all that the server has to know."""

    def select_model(self, model_name: str) -> nn.Module:
        return TUNED


def main() -> None:
    global LOADED, TUNED
    folder, workers, threads, talk = options()
    torch.set_num_threads(threads)
    LOADED = load(folder)
    TUNED = nn.ParameterList(LOADED.tuned.values())
    num_clients = LOADED.work.num_clients
    handler = FedAvgBaseServerHandler(Selector(), "tuned", None, 10**9, num_clients, 1.0, "cpu", 1, seed=0)
    with tempfile.TemporaryDirectory() as share_dir:
        trainer = Trainer(workers, threads, Path(share_dir))
        while talk.wait(lambda: LOADED.tuned):
            trainer.round += 1
            trainer.local_process(handler.downlink_package(), handler.sample_clients())
            for package in trainer.uplink_package():
                handler.load(package)
        trainer.manager.shutdown()


if __name__ == "__main__":
    main()
