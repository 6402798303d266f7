"""Full fine-tuning: every parameter is trained and travels. The baseline that the other methods are measured against.

Its tensors are the model's own, so there is one lane, in place: one model instance serves all clients in turn.
"""

from __future__ import annotations

from typing import Literal

from torch import Generator

from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import specify
from fedelta.tuning.lanes import Lanes


class Full(Settings):
    """Trains all parameters."""

    name: Literal["full"] = "full"

    @property
    def max_lanes(self) -> int:
        """One: the model's own tensors have no lane axis."""
        return 1

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """Makes every parameter ask for a gradient; nothing else changes. See `TuningMethod.apply`."""
        tensors: dict[str, TensorSpec] = {}
        for path, layer in backbone.module.named_modules():
            tensors |= specify(path, layer)
        backbone.module.requires_grad_(True)
        return ParamSpec(tensors)

    def merge(self, backbone: Backbone) -> None:
        """Nothing to fold: the model is its own result."""
