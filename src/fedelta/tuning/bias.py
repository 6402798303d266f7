"""Bias tuning: every bias of the model and the whole head are trained, all else is frozen.

Biases are the parameters that are called `bias`: of patch embedding, attention, MLP and norms. Scales of
norms, running statistics, positions and class tokens stay frozen, as in the FedPEFT authors' code.

Source: Ben Zaken et al. 2022 (BitFit); Sun et al. 2022 (FedPEFT, arXiv 2210.01708), prototype "Bias".

Shapes: K lanes, C features or channels.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.models.layers import oddity
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import frozen, merge_head, misfit, read_layers, replace, specification, tune_head
from fedelta.tuning.lanes import Lanes, Wrapper, lane_parameter

# Layers whose bias can have lanes, and the axis of their output that the bias belongs to. A class of transformers that
# derives from one of them and has its `forward` computes the same.
_CHANNEL_AXES: dict[type[nn.Module], int] = {
    nn.Linear: -1,
    nn.LayerNorm: -1,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm), 1),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), 1),
}
# Layers of transformers that add their bias last, on the last axis.
_ADDED_LAST = frozenset({
    "Conv1D", "DebertaLayerNorm", "EsmcLayerNorm", "FalconLinear", "NemotronLayerNorm1P", "NoNorm"
})  # fmt: skip


class Bias(Settings):
    """Trains all biases, and the head."""

    name: Literal["bias"] = "bias"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = True

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        module, tensors = backbone.module, {}
        for own, (now, layer) in read_layers(backbone).items():
            bias = dict(layer.named_parameters(recurse=False)).get("bias")
            if bias is None or own.partition(".")[0] in backbone.anatomy.head:
                continue
            if odd := oddity(layer, type(layer)):
                raise ModelError(
                    f"tuning method 'bias' cannot tune `{own}.bias`: the layer {odd}.",
                    hint="use 'lora' or 'head' for this model.",
                )
            if (axis := _channel_axis(layer)) is None:
                raise ModelError(
                    f"tuning method 'bias' cannot tune `{own}.bias`: a {type(layer).__name__} is none of "
                    f"{', '.join(kind.__name__ for kind in _CHANNEL_AXES)}.",
                    hint="use 'lora' or 'head' for this model.",
                )
            tensors[f"{now}.bias"] = TensorSpec(tuple(bias.shape), now)
            replace(module, now, LaneBias(lanes, layer, axis))
        if not tensors and not _tuned_already(backbone):
            raise misfit(self.name, backbone, "it has no bias outside of its head, so that it would be head tuning")
        return specification(backbone, tensors | tune_head(backbone, lanes))

    def merge(self, backbone: Backbone) -> None:
        """Gives every layer the bias of lane 0 back."""
        for path, layer in list(backbone.module.named_modules()):
            if isinstance(layer, LaneBias):
                layer.base.register_parameter("bias", frozen(layer.bias[0]))
                replace(backbone.module, path, layer.base)
        merge_head(backbone)


def _tuned_already(backbone: Backbone) -> bool:
    """Whether another method tunes biases outside of the head, such as those of norms beside parallel adapters."""
    names = (name for name, _ in backbone.module.named_parameters() if name.endswith("bias"))
    return any(name.partition(".")[0] not in backbone.anatomy.head for name in names)


def _channel_axis(layer: nn.Module) -> int | None:
    """The axis of the layer's output that its bias belongs to; None where it is not known that it is just added."""
    kind = type(layer)
    if kind.__module__.startswith("transformers."):
        if kind.__name__ in _ADDED_LAST:
            return -1
        if kind.__name__ in ("ConvNextLayerNorm", "ConvNextV2LayerNorm"):
            return 1 if layer.data_format == "channels_first" else -1
        return next((axis for known, axis in _CHANNEL_AXES.items() if kind.forward is known.forward), None)
    return _CHANNEL_AXES.get(kind)


class LaneBias(Wrapper):
    """A frozen layer whose bias alone is tuned.

    Args:
        lanes: of the model.
        base: a layer with a `bias`, which is taken from it.
        channel_axis: axis of the layer's output that the bias belongs to.
    """

    def __init__(self, lanes: Lanes, base: nn.Module, channel_axis: int) -> None:
        super().__init__(lanes, base)
        self.bias = lane_parameter(lanes, base.get_parameter("bias"))
        self.channel_axis = channel_axis
        # PyTorch's own layers take none; others add whatever is there.
        is_own = type(base).__module__.startswith("torch.")
        base.register_parameter("bias", None if is_own else frozen(torch.zeros_like(base.get_parameter("bias"))))

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the frozen layer takes and gives, the bias of each lane added."""
        y: Tensor = self.base(x)
        bias_KC, axes = self.lanes.used(self.bias), [1] * y.dim()
        own = bias_KC.shape[1:]  # a layer norm over several axes has them all
        first = self.channel_axis % y.dim() + 1 - len(own)
        axes[first : first + len(own)] = own
        return (self.lanes.split(y) + bias_KC.view(self.lanes.active, *axes)).view(y.shape)
