"""The model of a run: how many lanes a method gets on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedelta.assembly.model import TunedModel, tuned_model
from fedelta.config import parse_config
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.tuning.lane_layers import LaneLayer


class Reader(nn.Module):
    """Reads the weight of a layer instead of calling it, or calls it."""

    def __init__(self, *, reads: bool) -> None:
        super().__init__()
        self.inner, self.head, self.reads = nn.Linear(4, 4), nn.Linear(4, 2), reads

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.linear(x, self.inner.weight, self.inner.bias) if self.reads else self.inner(x)
        return self.head(inner)


def tuned(lanes: int | str, *, reads: bool) -> TunedModel:
    config = parse_config(
        {
            "model": {"source": "bundled:vit-micro"},
            "data": {"source": "digits"},
            "partition": {"name": "iid", "num_clients": 4},
            "tuning": {"name": "full"},
            "strategy": {"name": "fedavg", "clients_per_round": 4, "num_rounds": 1},
            "runtime": {"lanes": lanes},
        }
    )
    torch.manual_seed(0)
    backbone = Backbone(Reader(reads=reads).eval(), Anatomy(("head",)))
    return tuned_model(config, backbone, ("a", "b"), num_lanes=3, sample={"x": torch.randn(2, 4)})


def test_a_small_model_has_the_lanes_that_are_wanted():
    model = tuned(3, reads=False)
    assert model.lanes.num == 3
    assert isinstance(model.backbone.module.inner, LaneLayer)
    assert model.params["inner.weight"].shape == (4, 4)


def test_a_model_that_reads_the_weight_of_a_layer_has_one_lane(caplog: pytest.LogCaptureFixture):
    model = tuned(3, reads=True)
    assert model.lanes.num == 1
    assert isinstance(model.backbone.module.inner, nn.Linear)
    assert model.spec == tuned(3, reads=False).spec
    assert "one lane instead of 3: Reader; " in caplog.text


def test_nothing_is_said_where_nobody_asked_for_lanes(caplog: pytest.LogCaptureFixture):
    assert tuned("auto", reads=True).lanes.num == 1
    assert "lane" not in caplog.text
