"""Bias tuning: every bias of the model and the whole head are trained, all else is frozen.

Biases are the parameters that are called `bias`: of patch embedding, attention, MLP and layer norm. Scales of
layer norms, positions and class tokens stay frozen, as in the FedPEFT authors' code.

Source: Ben Zaken et al. 2022 (BitFit); Sun et al. 2022 (FedPEFT, arXiv 2210.01708), prototype "Bias".
"""

from __future__ import annotations

from typing import Literal

from torch import Generator, nn

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import freeze, merge_head, replace, tune_head
from fedelta.tuning.lanes import LaneBias, Lanes

# Layers whose bias can have lanes, and the axis of their output that the bias belongs to.
_CHANNEL_AXES: dict[type[nn.Module], int] = {nn.Linear: -1, nn.LayerNorm: -1, nn.Conv2d: 1}


class Bias(Settings):
    """Trains all biases, and the head."""

    name: Literal["bias"] = "bias"

    @property
    def max_lanes(self) -> None:
        """No bound."""

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        module, tensors = backbone.module, {}
        freeze(module)
        for path, layer in list(module.named_modules()):
            own = dict(layer.named_parameters(recurse=False))
            if "bias" not in own or path.partition(".")[0] in backbone.anatomy.head:
                continue
            axis = _CHANNEL_AXES.get(type(layer))
            if axis is None:
                raise ModelError(
                    f"tuning method 'bias' cannot tune `{path}.bias`: a {type(layer).__name__} is none of "
                    f"{', '.join(kind.__name__ for kind in _CHANNEL_AXES)}.",
                    hint="use 'lora' or 'head' for this model.",
                )
            tensors[f"{path}.bias"] = TensorSpec(tuple(own["bias"].shape), path)
            replace(module, path, LaneBias(lanes, layer, axis))
        return ParamSpec(tensors | tune_head(backbone, lanes))

    def merge(self, backbone: Backbone) -> None:
        """Gives every layer the bias of lane 0 back."""
        for path, layer in list(backbone.module.named_modules()):
            if isinstance(layer, LaneBias):
                base = layer.base
                base.register_parameter("bias", nn.Parameter(layer.bias[0].detach().clone(), requires_grad=False))
                replace(backbone.module, path, base)
        merge_head(backbone)
