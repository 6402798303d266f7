"""What a step is estimated to take, worked out by hand."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from fedelta.engine.footprint import Footprint, footprint_of, kept_bytes
from fedelta.engine.optimizers import AdamW, Sgd
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.seeds import stream
from fedelta.tuning.full import Full
from fedelta.tuning.lanes import Lanes


class Squares(nn.Module):
    """Two outputs from 8 features, squared, which keeps them for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).square()


def squares() -> Backbone:
    return Backbone(Squares(), Anatomy(head=("head",)))


def test_what_is_kept_grows_with_the_samples():
    backbone = squares()
    one, five = (kept_bytes(backbone, {"x": torch.rand(num, 8)}) for num in (1, 5))
    # Of each sample 8 features, 2 outputs before the square, 2 after it and 2 logarithms, all float32.
    assert five - one == 4 * (8 + 2 + 2 + 2) * 4


def test_nothing_of_a_trial_pass_stays_in_memory():
    backbone, x = squares(), torch.rand(1, 8, requires_grad=True)
    address = weakref.ref(x)
    kept_bytes(backbone, {"x": x})
    del x
    assert address() is None


@pytest.mark.parametrize(("optimizer", "copies"), [(Sgd(momentum=0.0), 4), (Sgd(), 5), (AdamW(), 6)])
def test_a_lane_holds_its_tensors_and_the_state_of_the_optimizer(optimizer, copies: int):
    backbone, lanes = squares(), Lanes(1)
    spec = Full().apply(backbone, lanes, stream(0))
    footprint = footprint_of(backbone, spec, lanes, {"x": torch.rand(3, 8)}, optimizer=optimizer, dtype="float32")
    # 18 parameters; AdamW has two averages of each.
    assert footprint.of_lane == copies * 18 * 4


def test_the_lanes_in_use_are_as_before_a_trial():
    backbone, lanes = squares(), Lanes(4)
    spec = Full().apply(backbone, Lanes(1), stream(0))
    lanes.active = 3
    footprint_of(backbone, spec, lanes, {"x": torch.rand(3, 8)}, optimizer=Sgd(), dtype="float32")
    assert lanes.active == 3


def test_the_largest_number_of_lanes_follows_from_the_bytes_of_one():
    footprint = Footprint(of_lane=100, of_sample=10)
    assert footprint.of_step(3, 5) == 450
    assert [footprint.most_lanes(num_bytes, 5) for num_bytes in (449, 450, 149, -5)] == [2, 3, 0, 0]
