"""Sensitivity by brute force: every round of a federation with and without each of its clients, without noise.

The rounds are those of `federate`, with clients that send anything from 1e-30 to 1e30. From the same standing a round
is run once with all clients, and once for each client of the cohort without it. What is released may differ by the
clipping norm, and does for some client, so that the claim is not too large either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from tests.builders import assert_same_bits
from tests.contracts.test_strategies import STRATEGIES
from tests.federation.private import NUM_CLIENTS, PRIVATE, TIERS, begun, next_of, private, strategy_of, without
from torch import Tensor

from fedelta.codecs.channel import Channel
from fedelta.federation.base import Federation, Standing
from fedelta.federation.records import RoundOutcome
from fedelta.federation.rounds import federate
from fedelta.federation.tiers import Tiers
from fedelta.params import Params
from fedelta.strategies.base import CombinedUpdates, RoundPlan
from fedelta.strategies.windows import Windows

C = 0.5


class Spied:
    """What the strategies of a test were given, round by round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, strategy: object) -> None:
        self.seen: list[tuple[RoundPlan, CombinedUpdates]] = []
        kind = type(strategy)
        update = kind.update  # type: ignore[attr-defined]

        def spying(
            self_: object, state: object, params: object, plan: RoundPlan, combined: CombinedUpdates, spec: object
        ):
            self.seen.append((plan, combined))
            return update(self_, state, params, plan, combined, spec)

        monkeypatch.setattr(kind, "update", spying)

    def round(self, federation: Federation, standing: Standing) -> tuple[RoundPlan, CombinedUpdates, RoundOutcome]:
        """The next round."""
        [outcome] = islice(federate(federation, standing), 1)
        return *self.seen[-1], outcome


def sums(plan: RoundPlan, combined: CombinedUpdates, expected: int) -> Tensor:
    """The sums over clients that were divided, as one vector."""
    holders = plan.num_holders or {}
    shares = {name: holders.get(name, NUM_CLIENTS) / NUM_CLIENTS for name in combined.mean}
    parts = [mean.flatten() * expected * shares[name] for name, mean in combined.mean.items()]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts])  # no group may be due


def pairs(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RoundPlan, tuple[CombinedUpdates, RoundOutcome], tuple[CombinedUpdates, RoundOutcome]]]:
    """Every round, with all clients and without each one of its cohort."""
    standing, spied = begun(federation), Spied(monkeypatch, federation.strategy)
    for _ in range(federation.strategy.num_rounds):
        plan, combined, outcome = spied.round(federation, standing)
        for client_id in plan.cohort:
            _, others, later = spied.round(without(federation, client_id), standing)
            assert others.mean.keys() == combined.mean.keys() == set(plan.due or ())
            yield plan, (combined, outcome), (others, later)
        standing = next_of(outcome)


SETTINGS = {
    "flat": {},
    "per group": {"clipping": "per-group"},
    "adaptive": {"clipping": "adaptive", "count_noise": 3.0},
    "tiers": {"tiers": TIERS},
    "tiers per group": {"tiers": TIERS, "clipping": "per-group"},
    "int8": {"channel": Channel.model_validate({"name": "int8"})},
    "bfloat16 up": {"channel": Channel.model_validate({"up": {"name": "bfloat16"}})},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", PRIVATE)
def test_one_client_changes_the_sum_by_the_clipping_norm_at_most(
    name: str, setting: str, monkeypatch: pytest.MonkeyPatch
):
    federation = private(strategy_of(name), clipping_norm=C, **SETTINGS[setting])
    largest = 0.0
    for plan, (combined, outcome), (others, _) in pairs(federation, monkeypatch):
        change = (sums(plan, combined, 4) - sums(plan, others, 4)).norm()
        limit = C if outcome.round == 1 or setting != "adaptive" else limit_of(federation, outcome)
        assert change <= limit * (1 + 1e-9)
        largest = max(largest, float(change) / limit)
    assert largest > (0.99 if "group" not in setting else 0.5)


def limit_of(federation: Federation, outcome: RoundOutcome) -> float:
    """C of the round of `outcome`, under adaptive clipping."""
    standing = begun(federation)
    for earlier in islice(federate(federation, standing), outcome.round - 1):
        standing = next_of(earlier)
    assert standing.privacy.clipping_norm is not None
    return standing.privacy.clipping_norm


@pytest.mark.parametrize("name", [name for name in PRIVATE if isinstance(STRATEGIES[name], Windows)])
def test_one_client_changes_the_squared_norms_by_the_square_of_the_clipping_norm_at_most(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    largest, asked = 0.0, set()
    for plan, (combined, outcome), (others, _) in pairs(private(strategy_of(name), clipping_norm=C), monkeypatch):
        assert combined.noised is not None
        assert others.noised is not None
        squares, fewer = combined.noised.squares, others.noised.squares
        assert bool(squares) == plan.asks_squares
        asked.add((outcome.round, plan.asks_squares))
        change = 4 * math.sqrt(math.fsum((squares[group] - fewer[group]) ** 2 for group in squares))
        assert change <= C**2 * (1 + 1e-9)
        largest = max(largest, change)
    # In the last round of each window of two, but not of the run.
    assert {round for round, is_asked in asked if is_asked} <= {2, 4}
    assert largest > 0.3 * C**2


@pytest.mark.parametrize("name", PRIVATE)
def test_one_client_changes_the_centred_count_by_a_half(name: str, monkeypatch: pytest.MonkeyPatch):
    # C' = C exp(-0.2 (count / 4 + 1/2 - 1/2))
    federation = private(strategy_of(name), clipping_norm=C, clipping="adaptive", count_noise=3.0)
    changes = set()
    for _, (_, outcome), (_, later) in pairs(federation, monkeypatch):
        with_it, without_it = outcome.privacy.clipping_norm, later.privacy.clipping_norm
        assert with_it is not None
        assert without_it is not None
        changes.add(round(4 * math.log(without_it / with_it) / 0.2, 6))
    assert changes == {-0.5, 0.5}


@pytest.mark.parametrize("cohort", [[0, 1, 3, 4, 6, 7], []], ids=["six", "nobody"])
@pytest.mark.parametrize("tiers", [None, TIERS], ids=["all alike", "tiers"])
@pytest.mark.parametrize("name", PRIVATE)
def test_clients_that_do_not_reply_and_clients_that_were_not_drawn_are_the_same_to_the_params(
    name: str, tiers: Tiers | None, cohort: list[int], monkeypatch: pytest.MonkeyPatch
):
    # So nothing but the sums, not even who was in the cohort, reaches what is released.
    federation = private(strategy_of(name, "fixed"), tiers=tiers)
    lost = set(range(NUM_CLIENTS)) - set(cohort)

    def params_of_rounds(federation: Federation, cohort: list[int]) -> list[Params]:
        for module in ("base", "windows"):
            monkeypatch.setattr(f"fedelta.strategies.{module}.drawn", lambda *_: cohort)
        outcomes = list(federate(federation, begun(federation)))
        assert {outcome.cohort for outcome in outcomes} == {tuple(cohort)}
        return [outcome.params for outcome in outcomes]

    not_drawn = params_of_rounds(federation, cohort)
    for client_id in lost:
        federation = without(federation, client_id)
    not_replied = params_of_rounds(federation, list(range(NUM_CLIENTS)))
    assert len(not_drawn) == 5
    for params, others in zip(not_drawn, not_replied, strict=True):
        assert_same_bits(params, others)
