"""Full fine-tuning, the baseline of the other methods: every parameter is trained and travels.

A norm belongs to the group of the convolution or matrix before it.

In one lane the tuned tensors are the model's own; with several, layers are replaced by their lane forms
(lane_layers.py). A model with a layer that has none trains in one lane: clients one after the other. Batch norms are
trained too, with their running statistics (norms.py).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Generator

from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import ride_along, specification
from fedelta.tuning.lane_layers import can_have_lanes, give_lanes, take_lanes
from fedelta.tuning.lanes import LaneModule, Lanes
from fedelta.tuning.norms import merge_norms, tune_norms


class Full(Settings):
    """Trains all parameters."""

    name: Literal["full"] = "full"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = True

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """Makes every parameter require a gradient; see `TuningMethod.apply`. Takes lanes away that it cannot fill."""
        if lanes.num > 1 and not can_have_lanes(backbone.module):
            lanes.limit(1, [])
        tensors = tune_norms(backbone, lanes)
        for path, layer in backbone.module.named_modules():
            if not isinstance(layer, LaneModule):
                for name, tensor in layer.named_parameters(recurse=False):
                    tensors[f"{path}.{name}".lstrip(".")] = TensorSpec(tuple(tensor.shape), path or name)
        if lanes.num > 1:
            give_lanes(backbone, lanes)
        return ride_along(specification(backbone, tensors))

    def merge(self, backbone: Backbone) -> None:
        """Puts the model's own layers back, with the values of lane 0."""
        take_lanes(backbone)
        merge_norms(backbone)
