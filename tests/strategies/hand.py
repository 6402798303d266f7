"""Two tensors and two updates that the tests of all strategies work out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tests.builders import spec_of
from torch import tensor

from fedelta.aggregation.base import Aggregation, Update, combine
from fedelta.params import Params, ParamSpec
from fedelta.seeds import stream
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State, Strategy

SPEC = spec_of(a=(), b=(2,))
PLAN = RoundPlan(1, download={}, upload={}, num_clients=5)


def params() -> Params:
    return {"a": tensor(10.0), "b": tensor([1.0, 2.0])}


def updates() -> list[Update]:
    """The weighted mean: a = (10 * 1 + 30 * -3) / 40 = -2, b = (10 * 2 + 30 * 6) / 40 = 5 and (-20 + 180) / 40 = 4."""
    return [
        Update(0, 10, {"a": tensor(1.0), "b": tensor([2.0, -2.0])}),
        Update(4, 30, {"a": tensor(-3.0), "b": tensor([6.0, 6.0])}),
    ]


def step(
    strategy: Strategy, state: State, params: Params, plan: RoundPlan, updates: Sequence[Update], spec: ParamSpec
) -> tuple[Params, State]:
    """`strategy.update` of these updates, with the mean that the strategy has chosen."""
    mean = combine(strategy.mean, updates, spec, stream(0))
    single = tuple(updates) if strategy.reads == "each" else ()
    plan = replace(plan, upload={update.client_id: tuple(update.delta) for update in updates} | dict(plan.upload))
    combined = CombinedUpdates(mean, tuple(update.client_id for update in updates), single)
    return strategy.update(state, params, plan, combined, spec)


def mean_of(aggregation: Aggregation, updates: Sequence[Update], spec: ParamSpec) -> Params:
    """What an aggregation makes of these updates."""
    return combine(aggregation, updates, spec, stream(0))
