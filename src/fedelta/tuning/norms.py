"""Norm layers with lanes: each client's affine transform, and under batch norm each client's own statistics.

What becomes of batch norm in a federation is `model.batch_norm`: `average` sends weight, bias and running statistics
and averages them all; `local` keeps them with their client (Li et al. 2021, FedBN, arXiv 2102.07623); `group` has
group norm instead (models/hub.py), which needs no statistics.

Running statistics are tuned tensors that no gradient reaches: they move in the forward pass of a training step.

Shapes: K lanes, A lanes in use, B samples of a lane, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.params import TensorSpec
from fedelta.tuning.base import replace, untouched
from fedelta.tuning.lanes import LaneModule, Lanes, lane_parameter


class LaneBatchNorm(LaneModule):
    """Batch norm over the samples of each lane; padding does not count.

    In training it uses the batch's mean and variance and moves the running ones by `momentum`; otherwise it uses the
    running ones.
    """

    def __init__(self, lanes: Lanes, layer: nn.BatchNorm2d) -> None:
        super().__init__(lanes)
        self.momentum = 0.1 if layer.momentum is None else layer.momentum  # 0.1: PyTorch's default
        self.eps = layer.eps
        self.weight = lane_parameter(lanes, layer.weight)
        self.bias = lane_parameter(lanes, layer.bias)
        # Parameters, though no gradient reaches them: like every tuned tensor they are found by name.
        self.running_mean = lane_parameter(lanes, layer.get_buffer("running_mean")).requires_grad_(False)
        self.running_var = lane_parameter(lanes, layer.get_buffer("running_var")).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[active * B, C, H, W] to the same shape."""
        if self.lanes.lengths is None:
            # A variance that was rounded on its way (codecs) can come out a little below zero.
            mean_AC, var_AC = self.lanes.used(self.running_mean), self.lanes.used(self.running_var).clamp_min(0)
            scale_AC = self.lanes.used(self.weight) * torch.rsqrt(var_AC + self.eps)
            return _affine(x, scale_AC, self.lanes.used(self.bias) - mean_AC * scale_AC)
        if self.lanes.active == 1 and x.numel() > x.shape[1]:  # PyTorch refuses a single value a channel
            return functional.batch_norm(
                x, self.running_mean[0], self.running_var[0], self.weight[0], self.bias[0],
                training=True, momentum=self.momentum, eps=self.eps,
            )  # fmt: skip
        return self._over_lanes(x, self.lanes.lengths)

    def _over_lanes(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        x_ABCHW = x.view(self.lanes.active, -1, *x.shape[1:])
        pixels = x.shape[-2] * x.shape[-1]
        counts_A1 = torch.tensor(lengths, device=x.device, dtype=torch.float32).unsqueeze(1) * pixels
        if min(lengths) == x_ABCHW.shape[1]:
            var_AC, mean_AC = torch.var_mean(x_ABCHW.float(), (1, 3, 4), correction=0)
        else:
            real_AB = torch.arange(x_ABCHW.shape[1], device=x.device) < counts_A1 / pixels
            real_AB111 = real_AB[:, :, None, None, None]
            mean_AC = (x_ABCHW.float() * real_AB111).sum((1, 3, 4)) / counts_A1
            centred = (x_ABCHW - mean_AC[:, None, :, None, None]) * real_AB111
            var_AC = centred.square().sum((1, 3, 4)) / counts_A1
        with torch.no_grad():
            unbiased_AC = var_AC * counts_A1 / (counts_A1 - 1).clamp_min(1)
            self.lanes.used(self.running_mean).lerp_(mean_AC, self.momentum)
            self.lanes.used(self.running_var).lerp_(unbiased_AC, self.momentum)
        scale_AC = self.lanes.used(self.weight) * torch.rsqrt(var_AC + self.eps)
        return _affine(x, scale_AC, self.lanes.used(self.bias) - mean_AC * scale_AC)


class LaneGroupNorm(LaneModule):
    """Group norm with an affine transform per lane; statistics are those of each sample."""

    def __init__(self, lanes: Lanes, layer: nn.GroupNorm) -> None:
        super().__init__(lanes)
        self.num_groups = layer.num_groups
        self.eps = layer.eps
        self.weight = lane_parameter(lanes, layer.weight)
        self.bias = lane_parameter(lanes, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[active * B, C, H, W] to the same shape."""
        normed = functional.group_norm(x, self.num_groups, eps=self.eps)
        return _affine(normed, self.lanes.used(self.weight), self.lanes.used(self.bias))


def tune_norms(backbone: Backbone, lanes: Lanes) -> dict[str, TensorSpec]:
    """Gives every batch norm and group norm of the model lanes and gradients; returns their specification."""
    shared = backbone.batch_norm != "local"
    tensors: dict[str, TensorSpec] = {}
    for now, layer in list(untouched(backbone.module).values()):
        if isinstance(layer, nn.BatchNorm2d):
            if not (layer.affine and layer.track_running_stats):
                raise ModelError(f"the batch norm `{now}` lacks weight and bias or running statistics; expected both.")
            replace(backbone.module, now, LaneBatchNorm(lanes, layer))
        elif isinstance(layer, nn.GroupNorm):
            replace(backbone.module, now, LaneGroupNorm(lanes, layer))
        else:
            continue
        shape = tuple(layer.weight.shape)
        tensors |= {f"{now}.{name}": TensorSpec(shape, now, shared=shared) for name in ("weight", "bias")}
        if isinstance(layer, nn.BatchNorm2d):
            statistic = TensorSpec(shape, now, trained=False, shared=shared)
            tensors |= {f"{now}.{name}": statistic for name in ("running_mean", "running_var")}
    return tensors


@torch.no_grad()
def merge_norms(backbone: Backbone) -> None:
    """Turns the lanes of every norm back into a plain layer with the values of lane 0."""
    for path, layer in list(backbone.module.named_modules()):
        if isinstance(layer, LaneBatchNorm):
            plain: nn.Module = nn.BatchNorm2d(layer.weight.shape[1], eps=layer.eps, momentum=layer.momentum)
        elif isinstance(layer, LaneGroupNorm):
            plain = nn.GroupNorm(layer.num_groups, layer.weight.shape[1], eps=layer.eps)
        else:
            continue
        plain.load_state_dict({name: value[0] for name, value in layer.state_dict().items()}, strict=False)
        replace(backbone.module, path, plain.to(layer.weight.device).eval().requires_grad_(False))


def _affine(x: Tensor, scale_AC: Tensor, shift_AC: Tensor) -> Tensor:
    """Scale x + shift, per lane and channel, for x [A * B, C, H, W]."""
    x_ABCHW = x.view(scale_AC.shape[0], -1, *x.shape[1:])
    shift, scale = (each[:, None, :, None, None] for each in (shift_AC, scale_AC))
    return torch.addcmul(shift, x_ABCHW, scale).to(x.dtype).view(x.shape)
