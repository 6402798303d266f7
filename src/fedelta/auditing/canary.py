"""A client that pushes as hard as it can, and a runtime in which one other client pushes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
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
        held: names of the tensors that the client holds; None: all.
        payloads: names of the tensors that were asked for to the payload; grows.
        directions: likewise to their direction.
    """

    client_id: int
    delta: Params
    wire: ParamSpec
    codec: Codec
    held: frozenset[str] | None = None
    payloads: dict[tuple[str, ...], bytes] = field(default_factory=dict)
    directions: dict[tuple[str, ...], Params] = field(default_factory=dict)

    @cached_property
    def opponent(self) -> Canary:
        """One that sends the opposite."""
        return replace(self, delta={name: -tensor for name, tensor in self.delta.items()}, payloads={}, directions={})

    def names(self, plan: RoundPlan) -> tuple[str, ...]:
        """What a client that holds the same tensors must send in a round, if it is in the cohort."""
        held = self.held
        return tuple(name for name in plan.due or () if held is None or name.rpartition("/")[2] in held)

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


def pushing(spec: ParamSpec, wire: ParamSpec, length: float) -> Params:
    """A delta with the norm `length`, equal in all groups of `spec`, in a random direction.

    Tensors that travel beside those of `spec`, such as control variates, are zero.
    """
    delta = {name: torch.zeros(wire.tensors[name].shape) for name in wire.shared}
    return delta | {name: (length * axis).float() for name, axis in random_direction(spec, spec.shared).items()}


@dataclass(frozen=True)
class Duel:
    """A runtime in which the canary answers, and of the other clients of a cohort the first one; all others are lost.

    Args:
        canary: of which the first other client sends the opposite.
        is_there: whether the canary answers, if it is in a cohort.
        plans: of the rounds so far; grows.
    """

    canary: Canary
    is_there: bool
    plans: list[RoundPlan] = field(default_factory=list)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
        """See `Runtime.run`."""
        self.plans.append(plan)
        first = first_other(plan, self.canary)
        for client_id in plan.cohort:
            if client_id == first or (self.is_there and client_id == self.canary.client_id):
                sender = self.canary.opponent if client_id == first else self.canary
                yield Reply(client_id, 1, sender.payload(plan.upload[client_id]), {"train_loss": 0.0})
            else:
                yield Reply(client_id, 0, b"", fault=Fault("it is not there", "dropped out"))

    def accept(self, client_ids: Iterable[int]) -> None:
        """Nothing is kept."""

    def snapshot(self, folder: Path, round: int) -> str:
        """Nothing is kept."""
        return ""

    def restore(self, folder: Path, mark: str) -> None:
        """Nothing is kept."""


def first_other(plan: RoundPlan, canary: Canary) -> int | None:
    """The first other client of the cohort that must send what the canary would; None if none must."""
    wanted = set(canary.names(plan))
    others = (number for number in plan.cohort if number != canary.client_id and set(plan.upload[number]) == wanted)
    return next(others, None)
