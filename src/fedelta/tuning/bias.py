"""Bias tuning: all biases of the model and the whole head are trained; everything else is frozen.

Biases are the parameters named `bias`: of patch embedding, attention, MLP and norms. The scales of norms, running
statistics, positions and class tokens are frozen, as in the FedPEFT authors' code.

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
from fedelta.tuning.base import effective_layers, frozen, merge_head, misfit, replace, specification, tune_head
from fedelta.tuning.lanes import Lanes, Wrapper, lane_parameter

# Layers whose bias can have lanes, and the axis of their output to which the bias is added. A class of transformers
# that is derived from one of them and inherits its `forward` computes the same.
_CHANNEL_AXES: dict[type[nn.Module], int] = {
    nn.Linear: -1,
    nn.LayerNorm: -1,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm), 1),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), 1),
}
# Layers of transformers that add their bias at the end, along the last axis.
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
        for path, (current, layer) in effective_layers(backbone).items():
            bias = dict(layer.named_parameters(recurse=False)).get("bias")
            if bias is None or backbone.anatomy.in_head(path):
                continue
            if problem := oddity(layer, type(layer)):
                raise ModelError(
                    f"tuning method 'bias' cannot tune `{path}.bias`: the layer {problem}.",
                    hint="use 'lora' or 'head' for this model.",
                )
            if (axis := _channel_axis(layer)) is None:
                raise ModelError(
                    f"tuning method 'bias' cannot tune `{path}.bias`: the layer is a {type(layer).__name__}, expected "
                    f"one of {', '.join(kind.__name__ for kind in _CHANNEL_AXES)}.",
                    hint="use 'lora' or 'head' for this model.",
                )
            tensors[f"{current}.bias"] = TensorSpec(tuple(bias.shape), current)
            replace(module, current, LaneBias(lanes, layer, axis))
        if not tensors and not _tuned_already(backbone):
            raise misfit(self.name, backbone, "it has no bias outside of its head, so only the head would be tuned")
        return specification(backbone, tensors | tune_head(backbone, lanes))

    def merge(self, backbone: Backbone) -> None:
        """Puts the bias of lane 0 back into every layer."""
        for path, layer in list(backbone.module.named_modules()):
            if isinstance(layer, LaneBias):
                layer.base.register_parameter("bias", frozen(layer.bias[0]))
                replace(backbone.module, path, layer.base)
        merge_head(backbone)


def _tuned_already(backbone: Backbone) -> bool:
    """Whether another method tunes biases outside of the head, such as those of norms beside parallel adapters."""
    names = (name for name, _ in backbone.module.named_parameters() if name.endswith("bias"))
    return any(not backbone.anatomy.in_head(name) for name in names)


def _channel_axis(layer: nn.Module) -> int | None:
    """The axis of the layer's output to which its bias is added; None if it is unknown how the bias is used."""
    kind = type(layer)
    if kind.__module__.startswith("transformers."):
        if kind.__name__ in _ADDED_LAST:
            return -1
        if kind.__name__ in ("ConvNextLayerNorm", "ConvNextV2LayerNorm"):
            return 1 if layer.data_format == "channels_first" else -1
        return next((axis for parent, axis in _CHANNEL_AXES.items() if kind.forward is parent.forward), None)
    return _CHANNEL_AXES.get(kind)


class LaneBias(Wrapper):
    """A frozen layer with a tuned bias per lane.

    Args:
        lanes: shared by all tuning modules of the model.
        base: a layer with a `bias`, which moves from it to this module.
        channel_axis: axis of the layer's output to which the bias is added.
    """

    def __init__(self, lanes: Lanes, base: nn.Module, channel_axis: int) -> None:
        super().__init__(lanes, base)
        self.bias = lane_parameter(lanes, base.get_parameter("bias"))
        self.channel_axis = channel_axis
        # PyTorch's layers accept None as their bias; layers of other packages need a tensor to add.
        is_torch_layer = type(base).__module__.startswith("torch.")
        base.register_parameter(
            "bias", None if is_torch_layer else frozen(torch.zeros_like(base.get_parameter("bias")))
        )

    def forward(self, x: Tensor) -> Tensor:
        """The output of the frozen layer plus the bias of each lane."""
        y: Tensor = self.base(x)
        axes = [len(y), *[1] * (y.dim() - 1)]
        bias_shape = self.bias.shape[1:]  # the bias of a layer norm over several axes has several axes
        start = self.channel_axis % y.dim() + 1 - len(bias_shape)
        axes[start : start + len(bias_shape)] = bias_shape
        return y + self.lanes.repeat(self.bias, y).view(axes)
