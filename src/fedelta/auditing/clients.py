"""Trials of client-level privacy: the rounds of a server to which one client sends all that it can, or nothing.

The canary sends the same long delta whenever it is in a cohort. All other clients are lost in every round, which is the
worst case: whoever knows their deltas can subtract them. What is seen are the server's params after every round, and
with adaptive clipping the clipping norms. Server, strategy, cohorts, codec, clipping and noise are those of the run.

A server's optimizer is left out: it computes from the noisy mean, so that what it computes tells no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from fedelta.aggregation.means import Uniform
from fedelta.auditing.bounds import Trials
from fedelta.auditing.directions import direction, random_direction
from fedelta.auditing.evidence import evidence, score
from fedelta.auditing.streams import Streams
from fedelta.codecs.base import Codec
from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import decode, encode
from fedelta.data.clients import Clients
from fedelta.federation.base import Federation, Standing
from fedelta.federation.records import Fault, Reply, RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.federation.tiers import Tiers
from fedelta.params import Params, ParamSpec, select
from fedelta.privacy.central import Central
from fedelta.privacy.randomness import Randomness
from fedelta.settings.base import as_settings
from fedelta.strategies.base import RoundPlan, Strategy
from fedelta.strategies.cohort import Rounds
from fedelta.strategies.fedavg import FedAvg

# Their server adds the mean itself to the params, so that the noisy mean can be read off.
_ADD_THE_MEAN = ("fedavg", "scaffold", "fedlama", "fedlama-auto", "fedluar")
_EXCESS = 32.0  # norm of the canary's delta, in units of C: far more than it may have


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


@dataclass(frozen=True)
class ClientTrials:
    """The server of a run, for trials.

    Args:
        strategy: of the run.
        num_rounds: of a trial.
        channel: the codecs of both directions.
        spec: what is tuned.
        clients: all of them; the canary is the last.
        central: the mechanism as it is claimed to be; its randomness is not used.
        rate: probability with which a client is in a cohort, as it is claimed to be.
        tiers: which client holds which tensors; None if all hold all.
    """

    strategy: Strategy
    num_rounds: int
    channel: Channel
    spec: ParamSpec
    clients: Clients
    central: Central
    rate: float
    tiers: Tiers | None = None

    def trials(self, num: int, streams: Streams) -> Trials:
        """The scores of `num` trials with and as many without the canary."""
        absent, present = (
            np.array([self._score(there, streams.of("client", there, trial)) for trial in range(num)])
            for there in (0, 1)
        )
        return Trials(absent, present)

    @cached_property
    def watched(self) -> Strategy:
        """The strategy of the trials."""
        changed = {"num_rounds": self.num_rounds, "server_lr": 1.0}
        if self.strategy.name not in _ADD_THE_MEAN:
            same = {name: getattr(self.strategy, name) for name in Rounds.model_fields}
            return FedAvg(**same | changed | {"mean": Uniform()})
        settings = as_settings(self.strategy)
        fields = type(settings).model_fields
        return settings.model_copy(update={key: value for key, value in changed.items() if key in fields})

    @cached_property
    def canary(self) -> Canary:
        """The client with the most tensors, as far as clients differ."""
        numbers = self.clients.numbers
        depths = {} if self.tiers is None else self.tiers.depths
        client_id = max(numbers, key=lambda number: (depths.get(number, 0), number))
        wire = self.spec if self.watched.steering is None else self.watched.steering.extend(self.spec)
        length = _EXCESS * self.central.settings.clipping_norm
        return canary(client_id, self.spec, wire, self.channel.up, length=length)

    def _score(self, there: int, randomness: Randomness) -> float:
        runtime = Lonely(self.canary if there else None)
        central = replace(self.central, randomness=randomness)
        params = {name: torch.zeros(self.spec.tensors[name].shape) for name in self.spec}
        federation = Federation(
            self.watched, runtime, self.channel, self.spec, self.clients,
            seed=0, evaluate=None, effective_steps=float, tiers=self.tiers, central=central,
        )  # fmt: skip
        draws: dict[int, list[float]] = {}
        for outcome in federate(federation, Standing(params, self.watched.init(params, self.spec))):
            draw = (outcome.round - 1) // self.watched.cohort_rounds
            draws.setdefault(draw, []).append(self._evidence(outcome, params, runtime.plans[-1]))
            params = outcome.params
        return score(draws.values(), self.rate)

    def _evidence(self, outcome: RoundOutcome, before: Params, plan: RoundPlan) -> float:
        """What the results of a round say."""
        clipping_norm, client_id = outcome.clipping_norm, self.canary.client_id
        if clipping_norm is None:
            raise ValueError("a round without a clipping norm has no client-level privacy")
        names = tuple(name for name in plan.due or () if self.tiers is None or self.tiers.owns(client_id, name))
        moved = 0.0
        for name, axis in self.canary.direction(names).items():
            mean = float(((outcome.params[name] - before[name]).double() * axis).sum())
            moved += mean * self._expected(plan, name)
        total = evidence(moved / clipping_norm, self.central.multiplier(plan))
        return total + self._evidence_of_count(outcome, clipping_norm)

    def _expected(self, plan: RoundPlan, name: str) -> float:
        """The number of clients by which the sum of a tensor was divided."""
        share = 1.0 if plan.num_holders is None else plan.num_holders[name] / len(self.clients.numbers)
        return self.central.expected_clients * share

    def _evidence_of_count(self, outcome: RoundOutcome, clipping_norm: float) -> float:
        """What the next clipping norm says: the canary is one client more above C, which counts as -1/2."""
        central, settings = self.central, self.central.settings
        if not central.is_adaptive or outcome.privacy.clipping_norm is None:
            return 0.0
        moved = math.log(outcome.privacy.clipping_norm / clipping_norm)
        below = settings.target_quantile - moved / settings.clipping_lr
        return evidence(-2 * central.expected_clients * (below - 0.5), 2 * central.count_noise)
