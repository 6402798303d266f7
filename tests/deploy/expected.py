"""What a deployed run must end at: the same experiment in this process, without the clients that were lost."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fedelta.assembly.run import Assembly, assemble
from fedelta.config import parse_config
from fedelta.federation.base import Runtime
from fedelta.federation.records import Fault, Reply
from fedelta.federation.rounds import Standing, federate
from fedelta.inference.layout import to_layout
from fedelta.strategies.base import RoundPlan

Lost = Mapping[int, Collection[int]]
TensorBytes = Mapping[tuple[int, int, str], Mapping[str, int]]


@dataclass(frozen=True)
class Expected:
    """The end of a run.

    Args:
        params: the tuned tensors, by the names of the adapter.
        measures: of the last round.
        tensor_bytes: by group, for each round, client and direction.
    """

    params: Mapping[str, Tensor]
    measures: Mapping[str, float]
    tensor_bytes: TensorBytes


def expected(recipe: Path, settings: Sequence[str] = (), lost: Lost = MappingProxyType({})) -> Expected:
    """The simulation of a recipe in which some clients do not answer.

    Args:
        recipe: of the deployed run.
        settings: overrides.
        lost: clients that no message reached, by round.
    """
    lost_in = tuple((round, tuple(sorted(clients))) for round, clients in sorted(lost.items()) if clients)
    return _expected(recipe.read_text(), tuple(settings), lost_in)


@cache
def _expected(recipe: str, settings: tuple[str, ...], lost_in: tuple[tuple[int, tuple[int, ...]], ...]) -> Expected:
    """`expected`; many tests run the same experiment."""
    lost = dict(lost_in)
    assembly = assemble(parse_config(tomllib.loads(recipe), [*settings, "runtime.name=simulation"]))
    federation = replace(assembly.federation, runtime=Lossy(assembly.federation.runtime, lost))
    start = Standing(assembly.params, assembly.strategy.init(assembly.params, assembly.spec))
    outcomes = list(federate(federation, start))
    tensor_bytes = {
        (outcome.round, transfer.client_id, transfer.direction): dict(transfer.tensor_bytes)
        for outcome in outcomes
        for transfer in outcome.transfers
    }
    return Expected(_as_adapter(assembly, outcomes[-1].params), assembly.evaluate(outcomes[-1].params).measures,
                    tensor_bytes)  # fmt: skip


@dataclass
class Lossy:
    """A runtime whose lost clients do not answer; see `Runtime`."""

    runtime: Runtime
    lost: Lost = field(default_factory=dict)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
        lost = self.lost.get(plan.round, ())
        yield from self.runtime.run(
            plan, {client: payload for client, payload in payloads.items() if client not in lost}
        )
        for client in payloads.keys() & set(lost):
            yield Reply(client, 0, b"", fault=Fault("lost", "away", reached=False))

    def accept(self, client_ids: Iterable[int]) -> None:
        self.runtime.accept(client_ids)

    def snapshot(self, folder: Path, round: int) -> str:
        return self.runtime.snapshot(folder, round)

    def restore(self, folder: Path, mark: str) -> None:
        self.runtime.restore(folder, mark)


def lost_clients(rounds: Sequence[Mapping[str, Any]]) -> dict[int, set[int]]:
    """Clients without an accepted reply, by round, as the records of a run name them."""
    return {record["round"]: {rejection["client_id"] for rejection in record["rejections"]} for record in rounds}


def assert_same_bits(params: Mapping[str, Any], other: Mapping[str, Tensor]) -> None:
    """Equal names, and equal bits of every tensor."""
    assert params.keys() == other.keys()
    for name, tensor in other.items():
        difference = (torch.as_tensor(params[name]) - tensor).abs().max().item()
        assert torch.equal(torch.as_tensor(params[name]), tensor), f"{name} differs by {difference}"


def _as_adapter(assembly: Assembly, params: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return to_layout(assembly.model.tuning, dict(params), assembly.backbone.anatomy)[0]
