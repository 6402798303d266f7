"""What clients reach alone: each trains its own model from the start of a run, without ever sending anything.

The rounds are shared out as in the run: with 64 clients of which 16 take part in each of 30 rounds, a client trains for
8 rounds of its own, with the schedule of the learning rate drawn out over these. Its model is evaluated on its own test
rows, or on all of them if they belong to no client; the measure over all rows is that of a run's `summary.json`.

    .venv/bin/python -m benchmarks.local_only recipes/instruct-t0.toml --set seed=8 [--rounds 30]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from fedelta.assembly.run import Assembly, assemble
from fedelta.data.batches import Examples
from fedelta.engine.work import Job
from fedelta.experiment import Experiment
from fedelta.params import Params
from fedelta.seeds import stream
from fedelta.tasks.base import Sums, added
from fedelta.tasks.contract import evaluation_of


def main() -> None:
    """Prints the primary measure as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--rounds", type=int, help="of each client; default: its share of those of the run")
    options = parser.parse_args()
    assembly = assemble(Experiment.from_toml(options.config, options.overrides).config)
    strategy, clients = assembly.config.strategy, assembly.data.partition
    num_rounds = options.rounds or ceil(strategy.num_rounds * strategy.clients_per_round / len(clients))
    print(json.dumps({"rounds": num_rounds, **measured(assembly, num_rounds)}, indent=1))


def measured(assembly: Assembly, num_rounds: int) -> dict[str, object]:
    """The measures before and after, by client and over all rows."""
    test = assembly.data.test
    rows_of = {client: rows_for(test, client) for client in assembly.data.partition}
    before = [sums(assembly, assembly.model.params, rows) for rows in rows_of.values()]
    after = [sums(assembly, params, rows_of[client]) for client, params in trained(assembly, num_rounds)]
    names = assembly.data.names
    return {
        "measure": assembly.task.primary.name,
        "not trained": value(assembly, before),
        "trained alone": value(assembly, after),
        "by client": {
            str(names.get(client, client)): value(assembly, [of_client])
            for client, of_client in zip(rows_of, after, strict=True)
        },
    }


def rows_for(test: Examples, client: int) -> Tensor:
    """The test rows on which a client's model is evaluated."""
    return torch.arange(len(test)) if test.clients is None else torch.where(test.clients == client)[0]


def trained(assembly: Assembly, num_rounds: int) -> Iterator[tuple[int, Params]]:
    """Each client and its model after `num_rounds` rounds."""
    engine, client = assembly.engine, assembly.engine.client
    params = dict.fromkeys(assembly.data.partition, assembly.model.params)
    for round in range(1, num_rounds + 1):
        lr = client.lr * client.schedule.factor(round, num_rounds)
        jobs = [job(assembly, number, rows, params[number], round) for number, rows in assembly.data.partition.items()]
        for result in engine.train(jobs, lr, round):
            params[result.client_id] = moved(params[result.client_id], result.delta)
    yield from params.items()


def job(assembly: Assembly, client: int, rows: Tensor, params: Params, round: int) -> Job:
    seed = assembly.config.seed
    order = (stream(seed, "alone", client, round, epoch) for epoch in iter(int, 1))
    return Job(client, rows, params, order, stream(seed, "alone noise", client, round))


def moved(params: Params, delta: Mapping[str, Tensor]) -> Params:
    return {name: value + delta[name] for name, value in params.items()}


def sums(assembly: Assembly, params: Params, rows: Tensor) -> list[Sums]:
    """What a client's measures on its test rows are computed from."""
    return assembly.engine.evaluator.sums(params, assembly.data.test, rows)


def value(assembly: Assembly, of_clients: Iterable[list[Sums]]) -> float:
    """The primary measure over all rows of these clients."""
    evaluation = evaluation_of(assembly.task, added(of_clients), has_exits=False)
    return evaluation.measures[assembly.task.primary.name]


if __name__ == "__main__":
    main()
