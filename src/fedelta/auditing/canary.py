"""A client that pushes as hard as it can, and a runtime in which nobody else answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fedelta.auditing.directions import direction, random_direction
from fedelta.codecs.base import Codec
from fedelta.codecs.wire import decode, encode
from fedelta.federation.records import Fault, Reply
from fedelta.params import Params, ParamSpec, select
from fedelta.strategies.base import RoundPlan


@dataclass(frozen=True)
class Canary:
    """A client that always sends the same delta.

    Args:
        client_id: its number.
        delta: of all tensors that can travel.
        wire: their specification.
        codec: of uploads.
        payloads: names of the tensors that were asked for to the payload; grows.
        directions: likewise to their direction.
    """

    client_id: int
    delta: Params
    wire: ParamSpec
    codec: Codec
    payloads: dict[tuple[str, ...], bytes] = field(default_factory=dict)
    directions: dict[tuple[str, ...], Params] = field(default_factory=dict)

    def payload(self, names: tuple[str, ...]) -> bytes:
        """What it sends if it is asked for these tensors."""
        if names not in self.payloads:
            self.payloads[names], _ = encode(select(self.delta, names), self.wire, self.codec)
        return self.payloads[names]

    def direction(self, names: tuple[str, ...]) -> Params:
        """What the server decodes of it, without the tensors that are zero, scaled to norm 1, equal in all groups."""
        if names not in self.directions:
            sent, _ = decode(self.payload(names), self.wire, self.codec)
            self.directions[names] = direction(sent, self.wire)
        return self.directions[names]


def canary(client_id: int, spec: ParamSpec, wire: ParamSpec, codec: Codec, *, length: float) -> Canary:
    """A canary whose delta has the norm `length`, equal in all groups, in a random direction.

    Tensors that travel beside those of `spec`, such as control variates, are zero.
    """
    delta = {name: torch.zeros(wire.tensors[name].shape) for name in wire.shared}
    delta |= {name: (length * axis).float() for name, axis in random_direction(spec, spec.shared).items()}
    return Canary(client_id, delta, wire, codec)


@dataclass(frozen=True)
class Lonely:
    """A runtime in which at most one client answers.

    Args:
        canary: the client that answers; None: nobody does.
        plans: of the rounds so far; grows.
    """

    canary: Canary | None
    plans: list[RoundPlan] = field(default_factory=list)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
        """See `Runtime.run`."""
        self.plans.append(plan)
        for client_id in plan.cohort:
            if self.canary is not None and client_id == self.canary.client_id:
                yield Reply(client_id, 1, self.canary.payload(plan.upload[client_id]), {"train_loss": 0.0})
            else:
                yield Reply(client_id, 0, b"", fault=Fault("it is not there", "dropped out"))

    def accept(self, client_ids: Iterable[int]) -> None:
        """Nothing is kept."""

    def snapshot(self, folder: Path, round: int) -> str:
        """Nothing is kept."""
        return ""

    def restore(self, folder: Path, mark: str) -> None:
        """Nothing is kept."""
