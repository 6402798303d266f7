"""When a warning says that bfloat16 is slow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

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


def test_nothing_is_said_of_a_model_that_is_not_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "slowdown", lambda *sizes: 18.2)
    assert slow_bfloat16(model().to("meta")) is None


def test_the_cost_is_measured():
    assert 0.01 < precision.slowdown(8, 8) < 1000


def test_the_cost_is_the_time_of_half_precision_in_times_of_full(monkeypatch: pytest.MonkeyPatch):
    seconds = 0.0

    def product(x: Tensor, weight: Tensor) -> Tensor:
        nonlocal seconds
        seconds += 6.0 if torch.is_autocast_enabled("cpu") else 2.0
        return linear(x, weight)

    monkeypatch.setattr(precision, "linear", product)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: seconds)
    assert precision.slowdown(8, 8) == 3.0
