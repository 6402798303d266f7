"""Client-level privacy with real clients: strategies beside kinds of tuning methods, codecs, and lost clients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from tests.contracts.test_strategies import fitted
from tests.contracts.test_tuning_methods import METHODS
from tests.federation.private import PRIVATE, SPEC, Uncounted, Wild, begun, strategy_of
from tests.federation.private import private as private_federation
from torch import Tensor

from fedelta.codecs.channel import Channel
from fedelta.federation.base import Federation, Standing
from fedelta.federation.records import Reply, RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.params import Params, norm
from fedelta.privacy import central
from fedelta.privacy.central import Central
from fedelta.privacy.clipping import clipped
from fedelta.privacy.guarantee import Guarantee
from fedelta.privacy.randomness import Seeded
from fedelta.privacy.settings import Privacy
from fedelta.privacy.state import Release
from fedelta.runtimes.stability import Stability, Unstable
from fedelta.strategies.base import RoundPlan
from fedelta.testing.federations import played

C = 1e-3  # below the norm of nearly every delta
KINDS = ("lora", "head", "accumulator+adapter", "bias", "full")


def private(federation: Federation, **privacy: object) -> Federation:
    """The federation with client-level privacy."""
    settings = Privacy(unit="client", noise_multiplier=1.0, clipping_norm=C, **privacy)
    strategy, num_clients = federation.strategy, len(federation.clients.numbers)
    server = Central(settings, 1.0, strategy.clients_per_round, num_clients, Seeded(0))
    return replace(federation, central=server, privacy=Uncounted())


def run(federation: Federation, standing: Standing) -> list[RoundOutcome]:
    outcomes = list(federate(federation, standing))
    assert not [rejection for outcome in outcomes for rejection in outcome.rejections]
    return outcomes


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The norm of each delta before and after clipping."""
    seen: list[tuple[float, float]] = []

    def watched(tensors: Mapping[str, Tensor], limit: float) -> Params:
        result = clipped(tensors, limit)
        seen.append((norm(tensors), norm(result)))
        return result

    monkeypatch.setattr(central, "clipped", watched)
    return seen


@pytest.mark.parametrize(("name", "kind"), list(itertools.product(PRIVATE, KINDS)))
def test_every_strategy_clips_and_randomises_every_kind_of_tuning_method(
    name: str, kind: str, norms: list[tuple[float, float]]
):
    strategy = fitted(strategy_of(name, "fixed", num_rounds=2, clients_per_round=3), kind)
    federation, standing, _ = played(strategy, METHODS[kind], "vit")
    [*_, last] = run(private(federation), standing)
    assert len(norms) == 6
    assert all(after <= C for _, after in norms)
    # Nothing is due in the first round of FedLAMA-auto, and with SCAFFOLD a client of one step has nothing to add.
    assert sum(before > C for before, _ in norms) >= (3 if "auto" in name else 5)
    moved = {name: last.params[name] - standing.params[name] for name in federation.spec.shared}
    # Noise of deviation C / 3 in the mean of the last round at least; server optimizers have steps of their own.
    assert all(float((tensor != 0).double().mean()) > 0.9 for tensor in moved.values())
    for name in federation.spec.kept:
        assert last.params[name] is standing.params[name]


@pytest.mark.parametrize("codec", ["int8", "float16"])
def test_codecs_with_and_without_a_residual_are_clipped_after_decoding(codec: str, norms: list[tuple[float, float]]):
    channel = Channel.model_validate({"name": codec})
    strategy = strategy_of("fedavg", "fixed", num_rounds=2, clients_per_round=3)
    federation, standing, _ = played(strategy, METHODS["lora"], "vit", channel=channel)
    run(private(federation), standing)
    assert len(norms) == 6
    assert all(after <= C < before for before, after in norms)


def test_poisson_cohorts_of_real_clients_nobody_too():
    strategy = strategy_of("fedlama", num_rounds=8, clients_per_round=1).model_copy(update={"phi": 1})
    federation, standing, _ = played(strategy, METHODS["lora"], "vit")
    with_sizes = private(replace(federation, seed=3), clipping="adaptive", count_noise=3.0)
    with_sizes = replace(with_sizes, central=replace(with_sizes.central, randomness=Seeded(5)))
    outcomes = run(with_sizes, standing)
    sizes = {len(outcome.cohort) for outcome in outcomes}
    assert 0 in sizes
    assert len(sizes) > 2


def test_clients_that_drop_out_or_are_late_count_as_zero():
    strategy = strategy_of("fedavg", "fixed", num_rounds=4, clients_per_round=4)
    federation, standing, _ = played(strategy, METHODS["lora"], "vit")
    unstable = Unstable(
        federation.runtime, Stability(dropout_fraction=0.5), federation.runtime.engine.client,
        {client_id: len(rows) for client_id, rows in federation.runtime.partition.items()}, seed=0,
    )  # fmt: skip
    outcomes = list(federate(private(replace(federation, runtime=unstable)), standing))
    lost = [len(outcome.rejections) for outcome in outcomes]
    assert sum(lost) > 0
    for outcome in outcomes:
        delta = torch.cat([
            (outcome.params[name] - standing.params[name]).flatten() for name in federation.spec.shared
        ])  # fmt: skip
        # C / 4 for each element by noise, whoever was lost.
        deviation = float(delta.double().std())
        assert deviation == pytest.approx(C / 4 * math.sqrt(outcome.round), rel=0.15)


@dataclass
class Away(Wild):
    """Clients of whom the lost ones get no download."""

    def run(self, plan: RoundPlan, payloads: Mapping[int, bytes]) -> Iterator[Reply]:
        for reply in super().run(plan, payloads):
            yield replace(reply, fault=reply.fault and replace(reply.fault, cause="away", reached=False))


def test_a_client_that_is_away_is_counted_in_the_round_in_which_a_killed_server_may_have_had_its_upload():
    guarantee = Guarantee(Privacy(unit="local", noise_multiplier=2.0), 2.0)
    settled = private_federation(strategy_of("fedavg", "cyclic", clients_per_round=8, num_rounds=3))
    runtime = Away(SPEC, lost=frozenset({3}))
    federation = replace(settled, central=None, privacy=guarantee, runtime=runtime)
    [*_, simulated] = federate(federation, begun(federation))
    assert "3" not in simulated.privacy.spent
    at_sites = replace(federation, site_of=dict.fromkeys(range(8), "kiel"))
    [first, *_, last] = federate(at_sites, begun(at_sites))
    assert last.privacy.spent["3"] == first.privacy.spent["3"] == {Release(1.0): 1}
    assert last.privacy.spent["4"] == {Release(1.0): 3}
