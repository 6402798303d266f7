"""Norm layers with lanes: each client's affine transform, and under batch norm each client's own statistics.

What becomes of batch norm in a federation is `model.batch_norm`: `average` sends weight, bias and running statistics
and averages them all; `local` keeps them with their client (Li et al. 2021, FedBN, arXiv 2102.07623); `group` has
group norm instead (models/hub.py), which needs no statistics.

Running statistics are tuned tensors that no gradient reaches: they move in the forward pass of a training step.

Shapes: K lanes, A lanes in use, B samples of a lane, C channels.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.models.layers import oddity
from fedelta.params import TensorSpec
from fedelta.tuning.base import replace, untouched
from fedelta.tuning.lanes import LaneModule, Lanes, lane_parameter

logger = logging.getLogger("fedelta")


class LaneBatchNorm(LaneModule):
    """Batch norm over the samples of each lane; padding does not count.

    In training it uses the batch's mean and variance and moves the running ones by `momentum`; otherwise it uses the
    running ones.
    """

    def __init__(self, lanes: Lanes, layer: nn.BatchNorm2d) -> None:
        super().__init__(lanes, instead_of=layer)
        # 0.1, PyTorch's default, also where a layer asks for the mean over all batches it ever saw: in a federation
        # a client starts from statistics whose number of batches is not known.
        self.momentum = 0.1 if layer.momentum is None else layer.momentum
        self.eps = layer.eps
        self.weight = lane_parameter(lanes, layer.weight)
        self.bias = lane_parameter(lanes, layer.bias)
        # Parameters, though no gradient reaches them: like every tuned tensor they are found by name.
        self.running_mean = lane_parameter(lanes, layer.get_buffer("running_mean")).requires_grad_(False)
        self.running_var = lane_parameter(lanes, layer.get_buffer("running_var")).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[active * B, C, H, W] to the same shape."""
        if self.lanes.lengths is None:
            # A variance that was rounded on its way (codecs) can come out a little below zero; the round loop never
            # takes it further than the mean of the clients.
            mean_AC, var_AC = self.lanes.used(self.running_mean), self.lanes.used(self.running_var).clamp_min(0)
            scale_AC = self.lanes.used(self.weight) * torch.rsqrt(var_AC + self.eps)
            return _affine(self.lanes, x, scale_AC, self.lanes.used(self.bias) - mean_AC * scale_AC)
        num_rows, active = self.lanes.per_lane(x), self.lanes.active
        # One lane goes straight through. By the views below a single row would get an odd stride along the batch, with
        # which later gradients came out wrong (PyTorch 2.13, seen in transformers' ResNet).
        if active == 1:
            return self._normalised(x, slice(1))
        lengths = self.lanes.entries(num_rows)
        if min(lengths) == num_rows and num_rows * x.shape[-2] * x.shape[-1] > 1:
            # Without padding in one call: lanes and channels together are its channels.
            x_BGHW = self.lanes.split(x).transpose(0, 1).flatten(1, 2)
            y_BGHW = self._normalised(x_BGHW, slice(active))
            return y_BGHW.view(-1, active, *x.shape[1:]).transpose(0, 1).flatten(0, 1)
        real = [rows[:length] for rows, length in zip(x.split(num_rows), lengths, strict=True)]
        normed = [self._normalised(rows, slice(lane, lane + 1)) for lane, rows in enumerate(real)]
        return torch.cat([functional.pad(rows, (0, 0, 0, 0, 0, 0, 0, num_rows - len(rows))) for rows in normed])

    def _normalised(self, x_BGHW: Tensor, lanes: slice) -> Tensor:
        """`x_BGHW` by its own statistics, which move the running ones; G are the channels of `lanes`, in order."""
        mean_AC, var_AC = self.running_mean[lanes], self.running_var[lanes]
        bias_G = self.bias[lanes].flatten()
        if x_BGHW.numel() == x_BGHW.shape[1]:
            # PyTorch refuses a single value a channel. It is its own mean, and says nothing of a variance.
            mean_AC.lerp_(x_BGHW.detach().view(mean_AC.shape).to(mean_AC.dtype), self.momentum)
            return 0 * x_BGHW + bias_G.view(-1, 1, 1)
        # Copies: autograd keeps them, and the next lane's move would be a change of the same memory.
        mean_G, var_G = mean_AC.flatten().clone(), var_AC.flatten().clone()
        y_BGHW = functional.batch_norm(
            x_BGHW, mean_G, var_G, self.weight[lanes].flatten(), bias_G,
            training=True, momentum=self.momentum, eps=self.eps,
        )  # fmt: skip
        with torch.no_grad():
            mean_AC.copy_(mean_G.view(mean_AC.shape))
            var_AC.copy_(var_G.view(var_AC.shape))
        return y_BGHW


class LaneGroupNorm(LaneModule):
    """Group norm with an affine transform per lane; statistics are those of each sample."""

    def __init__(self, lanes: Lanes, layer: nn.GroupNorm) -> None:
        super().__init__(lanes, instead_of=layer)
        self.num_groups = layer.num_groups
        self.eps = layer.eps
        self.weight = lane_parameter(lanes, layer.weight)
        self.bias = lane_parameter(lanes, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[active * B, C, ...] to the same shape."""
        normed = functional.group_norm(x, self.num_groups, eps=self.eps)
        return _affine(self.lanes, normed, self.lanes.used(self.weight), self.lanes.used(self.bias))


def tune_norms(backbone: Backbone, lanes: Lanes) -> dict[str, TensorSpec]:
    """Gives every batch norm and group norm of the model lanes and gradients; returns their specification.

    One whose class computes something else is left alone, with a word in the log.
    """
    shared = backbone.batch_norm != "local"
    tensors: dict[str, TensorSpec] = {}
    strange: dict[str, str] = {}
    for now, layer in list(untouched(backbone.module).values()):
        kind = next((kind for kind in (nn.BatchNorm2d, nn.GroupNorm) if isinstance(layer, kind)), None)
        if kind is not None and (odd := oddity(layer, kind)):
            strange[now] = odd
            continue
        if isinstance(layer, nn.BatchNorm2d):
            if not (layer.affine and layer.track_running_stats):
                raise ModelError(f"the batch norm `{now}` lacks weight and bias or running statistics; expected both.")
            replace(backbone.module, now, LaneBatchNorm(lanes, layer))
        elif isinstance(layer, nn.GroupNorm) and layer.affine:
            replace(backbone.module, now, LaneGroupNorm(lanes, layer))
        else:
            continue
        shape = tuple(layer.weight.shape)
        tensors |= {f"{now}.{name}": TensorSpec(shape, now, shared=shared) for name in ("weight", "bias")}
        if isinstance(layer, nn.BatchNorm2d):
            statistic = TensorSpec(shape, now, trained=False, shared=shared)
            tensors |= {f"{now}.{name}": statistic for name in ("running_mean", "running_var")}
    if strange:
        first = next(iter(strange))
        logger.warning("%d norms get no lanes, first `%s`: it %s.", len(strange), first, strange[first])
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
        replace(backbone.module, path, plain.to(layer.weight).eval().requires_grad_(False))


def _affine(lanes: Lanes, x: Tensor, scale_AC: Tensor, shift_AC: Tensor) -> Tensor:
    """`scale * x + shift` per lane and channel, for x [A * B, C, ...]."""
    x_ABC = lanes.split(x)
    shift, scale = (each.view(len(each), 1, -1, *[1] * (x.dim() - 2)) for each in (shift_AC, scale_AC))
    return torch.addcmul(shift, x_ABC, scale).to(x.dtype).view(x.shape)
