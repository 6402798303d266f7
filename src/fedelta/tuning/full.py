"""Full fine-tuning, the baseline of the other methods: every parameter is trained and travels.

A norm belongs to the group of the convolution or matrix before it.

The tuned tensors are the model's own and have no lane axis, so clients train one after the other in one model.
Batch norms are trained too, with their running statistics (norms.py).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Generator

from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import ride_along, specification
from fedelta.tuning.lanes import LaneModule, Lanes
from fedelta.tuning.norms import merge_norms, tune_norms


class Full(Settings):
    """Trains all parameters."""

    name: Literal["full"] = "full"
    max_lanes: ClassVar[int | None] = 1  # the model's own tensors have no lane axis
    merges: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = True

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """Makes every parameter require a gradient; see `TuningMethod.apply`."""
        tensors = tune_norms(backbone, lanes)
        for path, layer in backbone.module.named_modules():
            if not isinstance(layer, LaneModule):
                for name, tensor in layer.named_parameters(recurse=False):
                    tensors[f"{path}.{name}".lstrip(".")] = TensorSpec(tuple(tensor.shape), path or name)
        return ride_along(specification(backbone, tensors))

    def merge(self, backbone: Backbone) -> None:
        """Replaces the lanes of norms by plain norms."""
        merge_norms(backbone)
