"""Trials of client-level privacy find what is wrong with a server, and nothing where nothing is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.builders import spec_of

from fedelta.aggregation.means import Uniform
from fedelta.auditing.bounds import Measured, measured
from fedelta.auditing.clients import ClientTrials, watched
from fedelta.auditing.streams import Streams
from fedelta.codecs.channel import Channel
from fedelta.codecs.quantize import Integers
from fedelta.data.clients import Clients
from fedelta.federation.tiers import Tiers
from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.privacy.central import Central, Noising
from fedelta.privacy.correlated import fitted
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.randomness import Seeded
from fedelta.privacy.settings import Privacy
from fedelta.privacy.state import EVERYONE, PrivacyState
from fedelta.strategies.base import Strategy
from fedelta.strategies.fedavg import FedAvg
from fedelta.strategies.fedlama import FedLama
from fedelta.strategies.fedluar import FedLuar
from fedelta.strategies.fedopt import FedAdam
from fedelta.strategies.scaffold import Scaffold

SPEC = spec_of(a=(2,), b=(1,))
DELTA = 1e-5


def server(
    strategy: Strategy | None = None, *, num_rounds: int = 1, num_clients: int = 2, channel: Channel = Channel(),  # noqa: B008
    spec: ParamSpec = SPEC, tiers: Tiers | None = None, **settings: object,
) -> tuple[ClientTrials, Guarantee]:  # fmt: skip
    """Trials with noise of deviation C, and what is claimed of them; by default every client is in every cohort."""
    strategy = strategy or FedAvg(clients_per_round=2, sampling="poisson", mean=Uniform())
    privacy = Privacy(unit="client", **{"noise_multiplier": 1.0, "clipping_norm": 0.5} | settings)
    rate = 1.0 if strategy.sampling == "fixed" else strategy.clients_per_round / num_clients
    noise = privacy.noise_multiplier or 1.0
    central = Central(privacy, noise, strategy.clients_per_round, num_clients, Seeded(0))
    trials = ClientTrials(
        watched(strategy, num_rounds), channel, spec, Clients.of(range(num_clients)), central, rate, tiers
    )
    return trials, Guarantee(privacy, noise, rate, strategy.cohort_rounds)


def bounds_of(trials: ClientTrials, guarantee: Guarantee, num: int = 200, *, noise: float = 1.0) -> Measured:
    """The result of an audit with so many trials of each kind."""
    state = PrivacyState()
    for round in range(1, trials.strategy.num_rounds + 1):
        state = guarantee.after(state, round, ())
    return measured(trials.trials(num, Streams(0, noise=noise)), state.spent[EVERYONE], DELTA, 0.95)


def test_a_right_server_is_not_blamed_and_gives_away_less_than_is_accounted_for():
    result = bounds_of(*server())
    assert not result.exceeds
    assert 1.0 < result.epsilon < 4.377  # one Gaussian at z = 1


LAYERS = ParamSpec({f"{layer}.{name}": TensorSpec((2,), layer) for layer in "abc" for name in ("w", "v")})
TIERS = Tiers({0: 1, 1: 2, 2: 2, 3: 1}, {1: frozenset(LAYERS.names[:2]), 2: frozenset(LAYERS.names)})
TWO_OF_FOUR = {"clients_per_round": 2, "sampling": "poisson"}
KINDS = {
    "fixed cohorts": {"strategy": FedAvg(clients_per_round=2, mean=Uniform())},
    "per group": {"clipping": "per-group", "spec": LAYERS},
    "adaptive": {"clipping": "adaptive", "count_noise": 8.0},
    "int8": {"channel": Channel(up=Integers())},
    "windows": {
        "strategy": FedLama(phi=2, tau=1, mean=Uniform(), clients_per_round=3, sampling="poisson"),
        "spec": LAYERS,
        "num_clients": 4,
    },
    "control variates": {"strategy": Scaffold(**TWO_OF_FOUR), "num_clients": 4},
    "recycled": {"strategy": FedLuar(num_recycled=1, mean=Uniform(), **TWO_OF_FOUR), "spec": LAYERS, "num_clients": 4},
    "server optimizer": {"strategy": FedAdam(mean=Uniform(), **TWO_OF_FOUR), "num_clients": 4},
    "tiers": {"strategy": FedAvg(mean=Uniform(), **TWO_OF_FOUR), "spec": LAYERS, "num_clients": 4, "tiers": TIERS},
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_server_does_noise_covers_it_and_its_lack_is_noticed(kind: str):
    trials, guarantee = server(num_rounds=2, noise_multiplier=8.0, **KINDS[kind])
    assert not bounds_of(trials, guarantee, 40).exceeds
    assert bounds_of(trials, guarantee, 40, noise=0.0).exceeds


def test_noise_that_is_correlated_over_rounds_is_taken_apart():
    # Two of four clients in turns: rounds 1 and 3, or 2 and 4.
    strategy = FedAvg(clients_per_round=2, sampling="cyclic", mean=Uniform())
    correlated = fitted(3, num_rounds=4, num_clients=4, clients_per_round=2)
    assert min(correlated.weights) < 0
    trials, guarantee = server(strategy, num_rounds=4, num_clients=4, noise_multiplier=2.0, mechanism="banded")
    trials = replace(trials, central=replace(trials.central, correlated=correlated), rate=1.0)
    guarantee = replace(guarantee, correlated=correlated, cohort_rate=1.0)
    result = bounds_of(trials, guarantee, 100)
    assert not result.exceeds
    assert bounds_of(trials, guarantee, 100, noise=0.4).exceeds


@pytest.mark.parametrize("noise", [0.5, 0.1, 0.0])
def test_too_little_noise_is_noticed(noise: float):
    assert bounds_of(*server(), noise=noise).exceeds


def test_a_server_that_does_not_clip_is_noticed(monkeypatch: pytest.MonkeyPatch):
    def unlimited(delta: Params, limit: float) -> Params:
        return {name: tensor.double() for name, tensor in delta.items()}

    monkeypatch.setattr("fedelta.privacy.central.clipped", unlimited)
    assert bounds_of(*server()).exceeds


def test_cohorts_that_are_not_drawn_as_claimed_are_noticed(monkeypatch: pytest.MonkeyPatch):
    trials, guarantee = server(num_clients=6)  # 1 in 3, and in fact everybody

    def everybody(size: int, round: int, client_ids: Sequence[int], *_: object) -> list[int]:
        return list(client_ids)

    for module in ("strategies.base", "federation.contract"):
        monkeypatch.setattr(f"fedelta.{module}.drawn", everybody)
    assert bounds_of(trials, guarantee).exceeds


def test_a_mean_over_those_who_answered_is_noticed(monkeypatch: pytest.MonkeyPatch):
    add = Noising.add

    def counting(self: Noising, update: object) -> None:
        add(self, update)  # type: ignore[arg-type] # it is an update
        counts[id(self)] = counts.get(id(self), 0) + 1

    counts: dict[int, int] = {}
    monkeypatch.setattr(Noising, "add", counting)
    monkeypatch.setattr(Noising, "_expected", lambda self, name: counts.pop(id(self), 1))
    assert bounds_of(*server(spec=spec_of(a=(2,))), 400).exceeds
