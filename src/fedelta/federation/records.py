"""The values that the round loop gets from clients and hands to whoever keeps the records.

A `RoundPlan` (strategies/base.py) goes out, a `Reply` comes back. A reply that cannot be used becomes a
`Rejection`; every payload, used or not, becomes a `Transfer`. A `RoundOutcome` holds all of a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedelta.params import Params
from fedelta.strategies.base import State
from fedelta.tasks.base import Evaluation

Direction = Literal["down", "up"]
# Why a reply does not enter the mean.
Cause = Literal["refused", "void round", "no reply", "dropped out", "vanished", "too late"]
# Nobody's fault: the client was lost, not wrong.
LOST: tuple[Cause, ...] = ("no reply", "dropped out", "vanished", "too late")


@dataclass(frozen=True)
class Fault:
    """Why a reply has no payload.

    Args:
        reason: in words.
        cause: its kind.
        reached: whether the download travelled to the client.
    """

    reason: str
    cause: Cause = "refused"
    reached: bool = True


@dataclass(frozen=True)
class Reply:
    """What one client sends back.

    Args:
        client_id: who.
        num_examples: size of the client's training data, its weight in the mean.
        payload: the encoded delta; empty when `fault` is given.
        metrics: named numbers of the local training, such as `train_loss`.
        fault: why there is no payload; None when there is one.
        simulated_seconds: how long the client would have taken (`Stability`); None when nobody asks.
    """

    client_id: int
    num_examples: int
    payload: bytes
    metrics: Mapping[str, float] = field(default_factory=dict)
    fault: Fault | None = None
    simulated_seconds: float | None = None


@dataclass(frozen=True)
class Rejection:
    """A reply that does not enter the mean, and why."""

    client_id: int
    reason: str
    cause: Cause = "refused"


@dataclass(frozen=True)
class Transfer:
    """One payload that travelled.

    Args:
        round: number of the round, from 1.
        client_id: the client at the other end.
        direction: "down" to the client, "up" from it.
        payload_bytes: length of what was really serialised, header included.
        tensor_bytes: group to the bytes of its encoded tensors; their sum is less than `payload_bytes`.
    """

    round: int
    client_id: int
    direction: Direction
    payload_bytes: int
    tensor_bytes: Mapping[str, int]


@dataclass(frozen=True)
class Claim:
    """A number of examples that gives a client another weight than before, or more than it may have.

    Args:
        client_id: who claims it.
        num_examples: what it claims to have.
        before: what it claimed in its last accepted reply; None in its first.
        weight: with which it counts (`strategy.max_examples`).
    """

    client_id: int
    num_examples: int
    before: int | None
    weight: int


@dataclass(frozen=True)
class RoundOutcome:
    """Everything that a finished round leaves behind.

    Args:
        round: number of the round, from 1.
        params: server params after the round.
        state: strategy state after the round.
        cohort: ids of the clients that were asked, ascending.
        rejections: replies that did not enter the mean.
        transfers: payloads in the order down, up and ascending client id.
        num_examples: training examples behind the mean; 0 for a round that does not count.
        train_loss: mean local loss over the accepted clients, weighted by examples; None without any.
        evaluation: of the params on the evaluated set; None when this round was not evaluated.
        delta_norm: median Euclidean length of the accepted clients' deltas; None without any.
        simulated_seconds: how long the round would have taken (`Stability`); None when nobody asks.
        synced_fraction: share of the tuned scalars that were averaged; 1 means that the server has a new value of each.
        logged: numbers by group that the strategy wants to be written down (`Strategy.logged`).
        claims: of clients whose number of examples is worth a note.
        claimed: client id to the number of examples that it last claimed to have.
    """

    round: int
    params: Params
    state: State
    cohort: tuple[int, ...]
    rejections: tuple[Rejection, ...]
    transfers: tuple[Transfer, ...]
    num_examples: int
    train_loss: float | None
    evaluation: Evaluation | None
    delta_norm: float | None = None
    simulated_seconds: float | None = None
    synced_fraction: float = 1.0
    logged: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    claimed: Mapping[int, int] = field(default_factory=dict)
