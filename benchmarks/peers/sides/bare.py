"""The bare loop: one model for all clients, which take turns; with two workers, two processes that share the cohort.

Nothing is encoded, checked or written. The second process gets params and gives its sum through shared memory.
"""

from __future__ import annotations

import itertools
from functools import partial

import torch
from benchmarks.peers.loaded import Loaded, load
from benchmarks.peers.talk import options
from torch import Tensor


def main() -> None:
    folder, workers, threads, talk = options()
    torch.set_num_threads(threads)
    loaded = load(folder)
    params = {name: parameter.detach().clone() for name, parameter in loaded.tuned.items()}
    clients = range(loaded.work.num_clients)
    pool = _Pool(loaded, workers, params) if workers > 1 else None
    for number in itertools.count(1):
        if not talk.wait(partial(dict, params)):
            break
        params = total(loaded, number, params, clients) if pool is None else pool.round(number, params)
    if pool is not None:
        pool.end()


def total(loaded: Loaded, number: int, params: dict[str, Tensor], clients: range) -> dict[str, Tensor]:
    """The part of the mean that these clients have; all have the same number of examples."""
    sums = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    for client in clients:
        loaded.put(params)
        loaded.train(loaded.steps(number, client), loaded.optimizer())
        for name, parameter in loaded.tuned.items():
            sums[name].add_(parameter.detach(), alpha=1 / loaded.work.num_clients)
    return sums


class _Pool:
    """Processes with one thread each, among which clients are dealt out."""

    def __init__(self, loaded: Loaded, workers: int, params: dict[str, Tensor]) -> None:
        context = torch.multiprocessing.get_context("fork")
        self.shared = {name: tensor.clone().share_memory_() for name, tensor in params.items()}
        self.sums = [{name: tensor.clone().share_memory_() for name, tensor in params.items()} for _ in range(workers)]
        self.pipes, self.processes = [], []
        for rank in range(workers):
            here, there = context.Pipe()
            clients = range(rank, loaded.work.num_clients, workers)
            arguments = (loaded, there, self.shared, self.sums[rank], clients)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def round(self, number: int, params: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in params.items():
            self.shared[name].copy_(tensor)
        for pipe in self.pipes:
            pipe.send(number)
        for pipe in self.pipes:
            pipe.recv()
        return {name: sum(part[name] for part in self.sums) for name in params}

    def end(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(0)
            process.join()


def _work(loaded: Loaded, pipe, shared, sums, clients: range) -> None:
    torch.set_num_threads(1)
    while number := pipe.recv():
        for name, tensor in total(loaded, number, shared, clients).items():
            sums[name].copy_(tensor)
        pipe.send(True)


if __name__ == "__main__":
    main()
