"""Lane forms of a model's own layers, so that all of their weights can be trained in lanes.

A lane form takes the place of a layer, holds its tensors once per lane, and computes the same. Linear layers,
convolutions and layer norms have one; batch norms and group norms have theirs in norms.py. A model with any other layer
that has tensors of its own trains in one lane, with the layers that it came with: so do texts, as models look positions
up once for all samples.

Shapes: K lanes, A lanes in use, N samples of all of them, B of one lane, I in features, O out features,
G channels of several lanes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedelta.models.hub import Backbone
from fedelta.models.layers import is_linear, is_plain, is_transposed
from fedelta.tuning.base import frozen, replace
from fedelta.tuning.lanes import LaneModule, Lanes, Wrapper, joined, lane_parameter, scaled


class LaneLayer(Wrapper):
    """A layer of the model with a weight, and a bias if it has one, per lane.

    Args:
        lanes: shared by all tuning modules of the model.
        base: the layer, which loses its tensors to this module.
        compute: what the layer computes.
        shared: id of a tensor to its lanes, for tensors that several layers have; filled.
    """

    def __init__(
        self, lanes: Lanes, base: nn.Module, compute: Callable[[LaneLayer, Tensor], Tensor], shared: dict[int, Tensor]
    ) -> None:
        super().__init__(lanes, base)
        self._compute = compute
        for name, tensor in list(base.named_parameters(recurse=False)):
            if id(tensor) not in shared:
                shared[id(tensor)] = lane_parameter(lanes, tensor)
            setattr(self, name, shared[id(tensor)])
            base.register_parameter(name, None)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives for the samples of each lane."""
        return self._compute(self, x)


def give_lanes(backbone: Backbone, lanes: Lanes) -> None:
    """Puts lane forms in the place of all layers of a model that `can_have_lanes`; names of tensors stay the same."""
    shared: dict[int, Tensor] = {}
    for path, layer in list(backbone.module.named_modules()):
        if not isinstance(layer, LaneModule) and (compute := _form_of(layer)) is not None:
            replace(backbone.module, path, LaneLayer(lanes, layer, compute, shared))


@torch.no_grad()
def take_lanes(backbone: Backbone) -> None:
    """Puts the layers back, with the values of lane 0."""
    plain: dict[int, nn.Parameter] = {}
    for path, layer in list(backbone.module.named_modules()):
        if isinstance(layer, LaneLayer):
            for name, tensor in layer.named_parameters(recurse=False):
                layer.base.register_parameter(name, plain.setdefault(id(tensor), frozen(tensor[0])))
            replace(backbone.module, path, layer.base)


def can_have_lanes(module: nn.Module) -> bool:
    """Whether every layer with tensors of its own has a lane form, and none stands at two places of the model."""
    named = list(module.named_modules(remove_duplicate=False))
    has_tensors = [(path, layer) for path, layer in named if next(layer.parameters(recurse=False), None) is not None]
    if len({id(layer) for _, layer in has_tensors}) < len(has_tensors):
        return False
    return all(path and (_is_norm(layer) or _form_of(layer) is not None) for path, layer in has_tensors)


def _is_norm(layer: nn.Module) -> bool:
    """Whether norms.py gives it lanes."""
    if is_plain(layer, nn.BatchNorm2d):
        return bool(layer.affine and layer.track_running_stats)
    return is_plain(layer, nn.GroupNorm)


def _form_of(layer: nn.Module) -> Callable[[LaneLayer, Tensor], Tensor] | None:
    """What computes a layer in lanes; None if it is not known what the layer computes, or has no tensors."""
    if next(layer.parameters(recurse=False), None) is None:
        return None
    if is_linear(layer):
        return _transposed_linear if is_transposed(layer) else _linear
    if is_plain(layer, nn.Conv2d):
        return _convolution if layer.padding_mode == "zeros" else None
    if isinstance(layer, nn.LayerNorm) and is_plain(layer, nn.LayerNorm):
        return _layer_norm if len(layer.normalized_shape) == 1 else None
    return None


def _linear(layer: LaneLayer, x: Tensor) -> Tensor:
    """[N, ..., I] to [N, ..., O]."""
    return layer.lanes.linear(x, layer.weight, layer.bias)


def _transposed_linear(layer: LaneLayer, x: Tensor) -> Tensor:
    """[N, ..., I] to [N, ..., O], with a weight [K, I, O]."""
    return layer.lanes.linear(x, layer.weight.transpose(1, 2), layer.bias)


def _convolution(layer: LaneLayer, x: Tensor) -> Tensor:
    """[N, I, H, W] to [N, O, H, W]."""
    lanes = layer.lanes
    weight, active = lanes.used(layer.weight), lanes.active
    bias = None if layer.bias is None else lanes.used(layer.bias)

    def convolved(part: Tensor, kernels: Tensor, shift: Tensor | None, groups: int) -> Tensor:
        y: Tensor = functional.conv2d(part, kernels, shift, layer.stride, layer.padding, layer.dilation, groups)
        return y

    if active == 1 or not lanes.are_even:
        shifts = [None] * active if bias is None else bias.unbind()
        parts = zip(lanes.split(x), weight, shifts, strict=True)
        return joined([convolved(part, kernels, shift, layer.groups) for part, kernels, shift in parts])
    lanes.entries(x)  # an error where lanes cannot share it
    # The channels of all lanes side by side: one call with a group of channels for each lane.
    x_BGHW = x.unflatten(0, (active, -1)).transpose(0, 1).flatten(1, 2)
    shift = None if bias is None else bias.flatten()
    y_BAOHW: Tensor = convolved(x_BGHW, weight.flatten(0, 1), shift, active * layer.groups).unflatten(1, (active, -1))
    return y_BAOHW.transpose(0, 1).flatten(0, 1)


def _layer_norm(layer: LaneLayer, x: Tensor) -> Tensor:
    """[N, ..., I] to the same shape."""
    normed = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    bias = torch.zeros_like(layer.weight) if layer.bias is None else layer.bias
    return scaled(layer.lanes, normed, layer.weight, bias, axis=-1)
