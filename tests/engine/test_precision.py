"""When a warning says that bfloat16 is slow."""

from __future__ import annotations

import pytest
from torch import nn

from fedelta.engine import precision
from fedelta.engine.precision import slow_bfloat16


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 40), nn.LayerNorm(40))


@pytest.mark.parametrize(("ratio", "times"), [(18.2, "18 times"), (2.34, "2.3 times")])
def test_the_measured_cost_is_said(monkeypatch: pytest.MonkeyPatch, ratio: float, times: str):
    monkeypatch.setattr(precision, "slowdown", lambda *sizes: ratio)
    note = slow_bfloat16(model())
    assert note is not None
    assert f"about {times} slower on this CPU (measured on a matrix of 40 x 5); leave it at 'float32'" in note


def test_nothing_is_said_where_it_is_as_fast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "slowdown", lambda *sizes: 1.2)
    assert slow_bfloat16(model()) is None


def test_the_cost_is_measured():
    assert 0.01 < precision.slowdown(8, 8) < 1000
