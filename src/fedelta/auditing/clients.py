"""Trials of client-level privacy: the rounds of a server to which one client sends all that it can, or nothing.

The canary sends the same long delta whenever it is in a cohort, and one other client of the cohort the opposite. All
others are lost. Whoever tries to find out about the canary knows all that, as the guarantee allows, and subtracts it.
What is seen are the server's params after every round, and with adaptive clipping the clipping norms. Server, strategy,
cohorts, codec, clipping and noise are those of the run.

A server's optimizer is left out: it computes from the noisy mean, so that what it computes tells no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, cast

import numpy as np
import torch

from fedelta.aggregation.means import Uniform
from fedelta.auditing.bounds import Trials
from fedelta.auditing.canary import Canary, Duel, first_other, pushing
from fedelta.auditing.evidence import evidence, score
from fedelta.auditing.streams import Streams
from fedelta.codecs.channel import Channel
from fedelta.data.clients import Clients
from fedelta.federation.base import Federation, Standing
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.federation.tiers import Tiers
from fedelta.params import Params, ParamSpec
from fedelta.privacy.central import Central
from fedelta.privacy.randomness import Randomness
from fedelta.settings.base import as_settings
from fedelta.strategies.base import RoundPlan, Strategy
from fedelta.strategies.cohort import Rounds
from fedelta.strategies.fedavg import FedAvg

# Their server adds the mean itself to the params, so that the noisy mean can be read off.
_ADD_THE_MEAN = ("fedavg", "scaffold", "fedlama", "fedlama-auto", "fedluar")
_EXCESS = 32.0  # norm of the canary's delta, in units of C: far more than it may have


def watched(strategy: Strategy, num_rounds: int) -> Strategy:
    """The strategy of trials of `num_rounds` rounds, which adds the noisy mean to the params as it is."""
    changed = {"num_rounds": num_rounds, "server_lr": 1.0}
    if strategy.name not in _ADD_THE_MEAN:
        same = {name: getattr(strategy, name) for name in Rounds.model_fields}
        return FedAvg(**same | changed | {"mean": Uniform()})
    settings = as_settings(strategy)
    fields = type(settings).model_fields
    # A copy of a strategy is one.
    return cast(Strategy, settings.model_copy(update={key: value for key, value in changed.items() if key in fields}))


class _Seen(NamedTuple):
    """What the results of a round show.

    Args:
        seen: the sum of the deltas in the canary's direction, in units of C.
        was_asked: whether the canary is in the cohort.
        noise_multiplier: of the deltas.
        of_count: the evidence of the next clipping norm.
    """

    seen: float
    was_asked: bool
    noise_multiplier: float
    of_count: float


@dataclass(frozen=True)
class ClientTrials:
    """The server of a run, for trials.

    Args:
        strategy: of the trials, see `watched`.
        channel: the codecs of both directions.
        spec: what is tuned.
        clients: all of them; the canary is the last.
        central: the mechanism as it is claimed to be; its randomness is not used.
        rate: probability with which a client is in a cohort, as it is claimed to be.
        tiers: which client holds which tensors; None if all hold all.
    """

    strategy: Strategy
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
    def canary(self) -> Canary:
        """The client with the most tensors, as far as clients differ."""
        depths = {} if self.tiers is None else self.tiers.depths
        client_id = max(self.clients.numbers, key=lambda number: (depths.get(number, 0), number))
        held = None if self.tiers is None else self.tiers.owned[depths[client_id]]
        wire = self.spec if self.strategy.steering is None else self.strategy.steering.extend(self.spec)
        delta = pushing(self.spec, wire, _EXCESS * self.central.settings.clipping_norm)
        return Canary(client_id, delta, wire, self.channel.up, held)

    def _score(self, is_there: int, randomness: Randomness) -> float:
        numbers = self.clients.numbers
        if not is_there and self.central.correlated is None:
            # Where clients take turns, its turn stays and is lost, as turns are public.
            numbers = tuple(number for number in numbers if number != self.canary.client_id)
        runtime = Duel(self.canary, bool(is_there))
        params = {name: torch.zeros(self.spec.tensors[name].shape) for name in self.spec}
        federation = Federation(
            self.strategy,
            runtime,
            self.channel,
            self.spec,
            Clients.of(numbers),
            seed=0,
            evaluate=None,
            effective_steps=float,
            tiers=None if self.tiers is None else self.tiers.only(numbers),
            central=replace(self.central, randomness=randomness),
        )
        rounds = []
        for outcome in federate(federation, Standing(params, self.strategy.init(params, self.spec))):
            rounds.append(self._look(outcome, params, runtime.plans[-1]))
            params = outcome.params
        return self._score_of(rounds)

    def _look(self, outcome: RoundOutcome, before: Params, plan: RoundPlan) -> _Seen:
        """What the results of a round show."""
        clipping_norm, canary = outcome.clipping_norm, self.canary
        if clipping_norm is None:
            raise ValueError("a round without a clipping norm has no client-level privacy")
        others = 0.0 if first_other(plan, canary) is None else 1.0
        moved = 0.0
        for name, axis in canary.direction(canary.names(plan)).items():
            mean = float(((outcome.params[name] - before[name]).double() * axis).sum())
            moved += mean * self._expected(plan, name)
        was_asked = canary.client_id in plan.cohort
        count = self._evidence_of_count(outcome, clipping_norm, others)
        return _Seen(moved / clipping_norm + others, was_asked, self.central.multiplier(plan), count)

    def _score_of(self, rounds: Sequence[_Seen]) -> float:
        """The score of a trial that showed `rounds`."""
        if self.central.correlated is not None:
            weights = self.central.correlated.weights
            seen = _without_correlation([round.seen for round in rounds], weights)
            shifts = _without_correlation([float(round.was_asked) for round in rounds], weights)
            return math.fsum(map(evidence, seen, (round.noise_multiplier for round in rounds), shifts))
        draws: dict[int, list[float]] = {}
        for number, round in enumerate(rounds):
            draw = draws.setdefault(number // self.strategy.cohort_rounds, [])
            draw.append(evidence(round.seen, round.noise_multiplier) + round.of_count)
        return score(draws.values(), self.rate)

    def _expected(self, plan: RoundPlan, name: str) -> float:
        """The number of clients by which the sum of a tensor was divided."""
        share = 1.0 if plan.num_holders is None else plan.num_holders[name] / self.central.num_clients
        return self.central.expected_clients * share

    def _evidence_of_count(self, outcome: RoundOutcome, clipping_norm: float, others: float) -> float:
        """What the next clipping norm says: the canary is one client more above C, which counts as -1/2."""
        central, settings = self.central, self.central.settings
        if not central.is_adaptive or outcome.privacy.clipping_norm is None:
            return 0.0
        moved = math.log(outcome.privacy.clipping_norm / clipping_norm)
        below = settings.target_quantile - moved / settings.clipping_lr
        return evidence(-2 * central.expected_clients * (below - 0.5) - others, 2 * central.count_noise)


def _without_correlation(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The values y with y_t + w_1 y_{t-1} + ... = `values`, whose noise is independent; see privacy/correlated.py."""
    result: list[float] = []
    for value in values:
        earlier = zip(weights[1:], reversed(result), strict=False)
        result.append(value - math.fsum(weight * before for weight, before in earlier))
    return result
