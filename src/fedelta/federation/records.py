"""The values of a round: what clients send back, and what the round loop reports.

A `RoundPlan` (strategies/base.py) goes out and a `Reply` comes back. A reply that cannot be used becomes a `Rejection`;
every payload, used or not, becomes a `Transfer`. A `RoundOutcome` holds the results of a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedelta.codecs.changes import Mirror
from fedelta.params import Params
from fedelta.privacy.accounting import Epsilons
from fedelta.privacy.state import PrivacyState
from fedelta.strategies.base import State
from fedelta.tasks.base import Evaluation

Direction = Literal["down", "up"]
# Why a reply does not enter the mean. In a deployment, "away", "busy", "site refused" and "site failed" are said of all
# clients of a site; a client "forgot" if its site no longer has what the client must keep between rounds.
Cause = Literal[
    "refused", "void round", "no reply", "dropped out", "vanished", "too late",
    "away", "busy", "site refused", "site failed", "forgot",
]  # fmt: skip
# The client was lost, which is no sign of an error in the run.
LOST: tuple[Cause, ...] = (
    "no reply", "dropped out", "vanished", "too late", "away", "busy", "site refused", "site failed", "forgot",
)  # fmt: skip
# What a site did in a round: it answered in time; had nothing to do; did not answer in time; was still at work for an
# earlier round; was not connected; does not fit the run; crashed, or answered with what cannot be used.
SiteState = Literal["took part", "not asked", "late", "busy", "away", "refused", "failed"]


@dataclass(frozen=True)
class Fault:
    """Why a reply has no payload.

    Args:
        reason: in words, for the record.
        cause: kind of the reason.
        reached: whether the download reached the client.
    """

    reason: str
    cause: Cause = "refused"
    reached: bool = True


@dataclass(frozen=True)
class Reply:
    """What one client sends back.

    Args:
        client_id: number of the client.
        num_examples: number of the client's training examples, its weight in the mean.
        payload: the encoded delta; empty if there is a fault.
        metrics: measures of local training; `train_loss` is required.
        fault: why there is no payload; None if there is one.
        simulated_seconds: how long the client would have taken (`Stability`); None if time is not simulated.
    """

    client_id: int
    num_examples: int
    payload: bytes
    metrics: Mapping[str, float] = field(default_factory=dict)
    fault: Fault | None = None
    simulated_seconds: float | None = None


@dataclass(frozen=True)
class Rejection:
    """A reply that is not in the mean, and why."""

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
        payload_bytes: length of the serialised payload, header included.
        tensor_bytes: group to the bytes of its encoded tensors; their sum is less than `payload_bytes`.
    """

    round: int
    client_id: int
    direction: Direction
    payload_bytes: int
    tensor_bytes: Mapping[str, int]


@dataclass(frozen=True)
class Claim:
    """A claimed number of examples that has changed, or that exceeds `strategy.max_examples`.

    Args:
        client_id: number of the client.
        num_examples: the claimed number.
        before: the number in its last accepted reply; None in its first.
        weight: the client's weight in the mean, at most `strategy.max_examples`.
    """

    client_id: int
    num_examples: int
    before: int | None
    weight: int


@dataclass(frozen=True)
class Attendance:
    """What one site of a deployment did in a round.

    Args:
        site: its name.
        state: what it did.
        since: when this state began, ISO 8601 in UTC; "late" and "busy" are one state here, and so are "took part" and
            "not asked".
        since_round: number of the round in which it began.
        reason: why the site did not take part, in words; empty if it did, or had nothing to do.
        num_asked: number of its clients in the cohort.
        num_accepted: number of its clients in the mean.
        num_examples: examples of the clients in the mean.
        downlink_bytes: of the messages to the site, as they travelled, manifests included.
        uplink_bytes: of its answers.
        seconds: from the message to the answer; None without an answer.
    """

    site: str
    state: SiteState
    since: str
    since_round: int
    reason: str = ""
    num_asked: int = 0
    num_accepted: int = 0
    num_examples: int = 0
    downlink_bytes: int = 0
    uplink_bytes: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class RoundOutcome:
    """The results of a finished round.

    Args:
        round: number of the round, from 1.
        params: server params after the round.
        state: strategy state after the round.
        cohort: ids of the clients of the round, ascending.
        rejections: replies that are not in the mean, by ascending client id.
        transfers: all payloads: first down, then up, each by ascending client id.
        num_examples: sum of the examples of the accepted clients; 0 without any.
        train_loss: mean local loss of the accepted clients, weighted by examples; None without any, and with privacy.
        evaluation: measures of the params; None if this round was not evaluated.
        delta_norm: median Euclidean norm of the accepted clients' deltas; None without any, and with client-level
            privacy, which does not cover it.
        simulated_seconds: how long the round would have taken (`Stability`); None if time is not simulated.
        synced_fraction: share of the tuned scalars that were averaged, from 0 to 1.
        logged: numbers by group that the strategy adds to the record (`Strategy.logged`).
        claims: numbers of examples that have changed or were limited.
        claimed: client id to the number of examples in its last accepted reply.
        sites: what each site of a deployment did, by name; empty for other runtimes.
        privacy: what has been released by the end of the round.
        epsilons: of all rounds so far; None without a guarantee.
        clipping_norm: C of the round; None without client-level privacy.
        mirror: what clients hold after the round, if downloads carry changes; else empty.
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
    sites: tuple[Attendance, ...] = ()
    privacy: PrivacyState = field(default_factory=PrivacyState)
    epsilons: Epsilons | None = None
    clipping_norm: float | None = None
    mirror: Mirror = field(default_factory=Mirror)
