"""Clients that take turns, with banded noise: the round loop with and without one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from tests.builders import assert_same_bits, spec_of
from torch import Generator, tensor

from fedelta.aggregation.means import Uniform
from fedelta.codecs.cast import Cast
from fedelta.codecs.channel import Channel
from fedelta.codecs.wire import decode, encode
from fedelta.data.clients import Clients
from fedelta.errors import PluginError
from fedelta.federation.base import Federation, Standing
from fedelta.federation.records import Fault, Reply, RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.params import Params, ParamSpec
from fedelta.privacy.central import Central
from fedelta.privacy.correlated import Correlated, binomial, fitted
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.randomness import Secret, Seeded
from fedelta.privacy.settings import Privacy
from fedelta.privacy.state import EVERYONE, PrivacyState
from fedelta.strategies.base import RoundPlan, State, Strategy, uniform
from fedelta.strategies.fedavg import FedAvg, FedAvgM
from fedelta.strategies.fedluar import FedLuar

SPEC = spec_of(a=(), b=(2,))
START = {"a": tensor(1.0), "b": tensor([0.0, 0.0])}
NUM_CLIENTS, CLIENTS_PER_ROUND, NUM_ROUNDS = 6, 2, 7
CORRELATED = Correlated(binomial(0.6, 3), NUM_CLIENTS, CLIENTS_PER_ROUND)
PRIVACY = Privacy(unit="client", mechanism="banded", noise_multiplier=2.0, target_delta=1e-3)


@dataclass
class Drifting:
    """Each client moves away from what it gets, except for those that are lost.

    So what the others send in a later round depends on what `lost` sent before.
    """

    lost: frozenset[int] = frozenset()
    cohorts: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Sequence[Reply]:
        self.cohorts.append(plan.cohort)
        return [self._reply(client_id, plan, payloads[client_id]) for client_id in plan.cohort]

    def _reply(self, client_id: int, plan: RoundPlan, payload: bytes) -> Reply:
        if client_id in self.lost:
            return Reply(client_id, 0, b"", fault=Fault("away", "no reply"))
        received, _ = decode(payload, SPEC, Cast())
        delta = {name: received[name] + 1000 * (client_id + 1) for name in plan.upload[client_id]}
        return Reply(client_id, 10, encode(delta, SPEC, Cast())[0])

    def accept(self, client_ids: Iterable[int]) -> None:
        pass

    def snapshot(self, folder: Path, round: int) -> str:
        raise NotImplementedError

    def restore(self, folder: Path, mark: str) -> None:
        raise NotImplementedError


def federation(
    runtime: Drifting | None = None, strategy: Strategy | None = None, correlated: Correlated = CORRELATED
) -> Federation:
    strategy = strategy or FedAvg(
        clients_per_round=CLIENTS_PER_ROUND, num_rounds=NUM_ROUNDS, sampling="cyclic", mean=Uniform()
    )
    return Federation(
        strategy=strategy,
        runtime=runtime or Drifting(),
        channel=Channel(down=Cast(), up=Cast()),
        spec=SPEC,
        clients=Clients.of(range(NUM_CLIENTS)),
        seed=0,
        evaluate=None,
        effective_steps=float,
        privacy=Guarantee(PRIVACY, 2.0, correlated=correlated),
        central=Central(PRIVACY, 2.0, CLIENTS_PER_ROUND, NUM_CLIENTS, Seeded(0), correlated),
    )


def outcomes(running: Federation) -> list[RoundOutcome]:
    return list(federate(running, Standing(START, running.strategy.init(START, SPEC))))


def flat(params: Params) -> np.ndarray:
    return torch.cat([tensor.double().flatten() for tensor in params.values()]).numpy()


def releases(running: Federation) -> np.ndarray:
    """The noisy sums of all rounds [R, 3], in units of the clipping norm."""
    results = [START, *(outcome.params for outcome in outcomes(running))]
    return np.diff([flat(params) for params in results], axis=0) * CLIENTS_PER_ROUND


def test_a_client_comes_every_third_round_whatever_its_place():
    runtime = Drifting()
    outcomes(federation(runtime))
    for client_id in range(NUM_CLIENTS):
        rounds = [number for number, cohort in enumerate(runtime.cohorts, 1) if client_id in cohort]
        assert np.diff(rounds).tolist() == [3] * (len(rounds) - 1)
        assert len(rounds) in (2, 3)  # 7 rounds
    assert sorted(sum(runtime.cohorts[:3], ())) == list(range(NUM_CLIENTS))
    assert runtime.cohorts[:3] != [(0, 1), (2, 3), (4, 5)]  # the order is drawn from the seed


def test_without_one_client_the_mechanism_moves_by_its_sensitivity_at_most():
    # All releases together are W (C g + z): with the same noise they differ by W C of the difference of the sums g,
    # and the part of that which the noise has to hide is C times that difference. The clients that stay answer to the
    # params, so it is compared round by round, with the params of the run with everyone.
    inverse = np.zeros((NUM_ROUNDS, NUM_ROUNDS))
    for row in range(NUM_ROUNDS):
        for age, weight in enumerate(CORRELATED.weights[: row + 1]):
            inverse[row, row - age] = weight
    columns = np.linalg.inv(inverse)
    farthest = []
    for client_id in range(NUM_CLIENTS):
        differences = np.zeros((NUM_ROUNDS, 3))
        running, without = federation(), federation(Drifting(frozenset([client_id])))
        standing = Standing(START, {})
        for number, outcome in enumerate(outcomes(running)):
            other = next(federate(without, standing))
            differences[number] = (flat(outcome.params) - flat(other.params)) * CLIENTS_PER_ROUND
            standing = Standing(outcome.params, {}, outcome.round, privacy=outcome.privacy)
        turns = np.linalg.norm(differences, axis=1)
        assert set(turns.round(5)) <= {0.0, 1.0}  # clipped to C = 1 in its turns, and nothing else
        farthest.append(np.linalg.norm(columns @ differences))
    assert max(farthest) == pytest.approx(CORRELATED.sensitivity(NUM_ROUNDS), rel=1e-5)


def test_the_noise_of_the_rounds_is_correlated_as_the_weights_say():
    # Nobody replies, so only noise is released: C times it is independent, with deviation z = 2.
    noise = releases(federation(Drifting(frozenset(range(NUM_CLIENTS)))))
    independent = np.stack(
        [flat({name: normal(round, name) for name in SPEC}) for round in range(1, NUM_ROUNDS + 1)],
    )
    expected = [
        sum(weight * independent[round - age] for age, weight in enumerate(CORRELATED.weights[: round + 1]))
        for round in range(NUM_ROUNDS)
    ]
    np.testing.assert_allclose(noise, 2 * np.array(expected), atol=1e-5)


def normal(round: int, name: str) -> torch.Tensor:
    return Seeded(0).normal(SPEC.tensors[name].numel, "privacy", round, "delta", name)


def test_a_tensor_that_is_not_due_keeps_its_place_in_the_noise():
    # FedLUAR leaves out one of two groups in every round but the first; what is due has the noise of its round, with
    # the deviation z C / M = 1.
    strategy = FedLuar(
        clients_per_round=CLIENTS_PER_ROUND, num_rounds=4, sampling="cyclic", num_recycled=1, mean=Uniform()
    )
    running = federation(Drifting(frozenset(range(NUM_CLIENTS))), strategy)
    results = outcomes(running)
    for before, outcome in pairwise(results):
        changed = {name: (outcome.params[name] - before.params[name]).double() for name in SPEC}
        expected = {
            name: CORRELATED.noise(lambda round, name=name: normal(round, name), outcome.round).reshape(
                SPEC.tensors[name].shape
            )
            for name in SPEC
        }
        due = [name for name in SPEC if torch.allclose(changed[name], expected[name], atol=1e-5)]
        assert len(due) == 1


def test_one_band_is_independent_noise_to_the_last_bit():
    alone = federation(correlated=Correlated((1.0,), NUM_CLIENTS, CLIENTS_PER_ROUND))
    for outcome, expected in zip(outcomes(alone), outcomes(federation(correlated=None)), strict=True):
        assert_same_bits(outcome.params, expected.params)


@pytest.mark.parametrize("randomness", [Seeded(0), Secret(bytes(32))], ids=["seeded", "secret"])
def test_a_run_that_goes_on_after_a_kill_repeats_the_same_noise(randomness):
    running = federation(
        strategy=FedAvgM(clients_per_round=CLIENTS_PER_ROUND, num_rounds=NUM_ROUNDS, sampling="cyclic", mean=Uniform())
    )
    running = replace(running, central=replace(running.central, randomness=randomness))
    results = outcomes(running)
    third = results[2]
    privacy = PrivacyState.from_record(json.loads(json.dumps(third.privacy.as_record())))
    resumed = federate(running, Standing(third.params, third.state, third.round, privacy=privacy))
    for outcome, expected in zip(resumed, results[3:], strict=True):
        assert_same_bits(outcome.params, expected.params)
        assert outcome.privacy == expected.privacy


def test_a_round_that_is_repeated_with_other_replies_has_other_secret_noise_and_later_rounds_take_back_the_right_one():
    # Client by client nobody, or only one, replies in round 2; round 3 takes back what round 2 really had.
    everyone = frozenset(range(NUM_CLIENTS))
    quiet = federation(Drifting(everyone))
    secret = replace(quiet.central, randomness=Secret(bytes(32)))
    first, second = list(islice(federate(replace(quiet, central=secret), Standing(START, {})), 2))
    one = Drifting(everyone - {second.cohort[0]})
    again = next(
        federate(
            replace(quiet, central=secret, runtime=one),
            Standing(first.params, first.state, first.round, privacy=first.privacy),
        )
    )
    assert second.privacy.labels[0] != again.privacy.labels[0]
    assert second.privacy.labels[1:] == again.privacy.labels[1:] == first.privacy.labels[:1]
    # A clipped delta moves the sum by 1, and thus the params by 1/2; other noise by far more.
    assert np.linalg.norm(flat(again.params) - flat(second.params)) > 0.6
    third = next(federate(replace(quiet, central=secret), Standing(again.params, {}, 2, privacy=again.privacy)))
    independent = [
        np.concatenate(
            [
                secret.randomness.below("release", round, label)
                .normal(SPEC.tensors[name].numel, "privacy", round, "delta", name)
                .numpy()
                for name in SPEC
            ]
        )
        for round, label in ((3, third.privacy.labels[0]), (2, again.privacy.labels[0]), (1, first.privacy.labels[0]))
    ]
    expected = sum(weight * noise for weight, noise in zip(CORRELATED.weights, independent, strict=True))
    np.testing.assert_allclose(flat(third.params) - flat(again.params), expected, atol=1e-5)  # z C / M = 1


def test_the_epsilon_of_every_round_is_that_of_all_rounds_so_far():
    for outcome in outcomes(federation()):
        [(release, times)] = outcome.privacy.spent[EVERYONE].items()
        assert times == 1
        assert release.noise_multiplier == pytest.approx(2.0 / CORRELATED.sensitivity(outcome.round))


def test_a_strategy_whose_clients_do_not_take_turns_is_stopped():
    with pytest.raises(PluginError, match=r"asks the clients \[\d, \d\], expected \[\d, \d\], whose turn it is"):
        outcomes(federation(strategy=OutOfTurn(clients_per_round=2, num_rounds=9, sampling="cyclic", mean=Uniform())))


class OutOfTurn(FedAvg):
    """Says that clients take turns, but draws them."""

    private: ClassVar[bool] = True

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        return uniform(self.clients_per_round, round, client_ids, spec, generator)


def test_momentum_on_the_server_needs_no_further_noise():
    # Everything that is applied follows from the releases: without clients the velocity is a sum of noise.
    strategy = FedAvgM(clients_per_round=2, num_rounds=3, sampling="cyclic", mean=Uniform(), momentum=0.5)
    correlated = fitted(2, 3, NUM_CLIENTS, CLIENTS_PER_ROUND)
    lost = Drifting(frozenset(range(NUM_CLIENTS)))
    results = outcomes(federation(lost, strategy, correlated))
    noise = [
        2.0 / CLIENTS_PER_ROUND * correlated.noise(lambda round: normal(round, "b"), number) for number in (1, 2, 3)
    ]
    velocity = 0.25 * noise[0] + 0.5 * noise[1] + noise[2]
    moved = (results[2].params["b"] - results[1].params["b"]).double()
    torch.testing.assert_close(moved, velocity, atol=1e-5, rtol=0)
