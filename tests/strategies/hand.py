"""Two tensors and two updates that the tests of all strategies work out by hand."""

from __future__ import annotations

from tests.builders import spec_of
from torch import tensor

from fedelta.params import Params
from fedelta.strategies.base import RoundPlan, Update

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
