"""Norm layers with lanes: weight, bias and, for batch norm, running statistics per client.

`model.batch_norm` decides what a federation does with batch norm: `average` sends weight, bias and running statistics
and averages all of them; `local` keeps them on the client (Li et al. 2021, FedBN, arXiv 2102.07623); `group` replaces
batch norm by group norm (models/hub.py), which has no running statistics.

Running statistics are tuned tensors without gradients; they change in the forward pass of a training step.

Shapes: K lanes, A lanes in use, N samples of all of them, B of one lane, C channels.
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
from fedelta.tuning.lanes import LaneModule, Lanes, joined, lane_parameter, scaled

logger = logging.getLogger("fedelta")


class LaneBatchNorm(LaneModule):
    """Batch norm over the samples of each lane.

    In training it uses mean and variance of the batch and moves the running statistics towards them by `momentum`;
    otherwise it uses the running statistics.
    """

    def __init__(self, lanes: Lanes, layer: nn.BatchNorm2d) -> None:
        super().__init__(lanes, instead_of=layer)
        # `momentum=None` is PyTorch's cumulative mean over all batches. A client does not know how many batches its
        # initial statistics are from, so PyTorch's default 0.1 is used instead.
        self.momentum = 0.1 if layer.momentum is None else layer.momentum
        self.eps = layer.eps
        self.weight = lane_parameter(lanes, layer.weight)
        self.bias = lane_parameter(lanes, layer.bias)
        # Parameters and not buffers, because tuned tensors are found with `get_parameter`.
        self.running_mean = lane_parameter(lanes, layer.get_buffer("running_mean")).requires_grad_(False)
        self.running_var = lane_parameter(lanes, layer.get_buffer("running_var")).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape."""
        if self.lanes.lengths is None:
            # The rounding error of a codec can make a variance slightly negative.
            scale_KC = self.weight * torch.rsqrt(self.running_var.clamp_min(0) + self.eps)
            return scaled(self.lanes, x, scale_KC, self.bias - self.running_mean * scale_KC, axis=1).to(x.dtype)
        parts, active = self.lanes.split(x), self.lanes.active
        # The views below would give a single row an unusual stride along the batch, for which PyTorch 2.13 computes
        # wrong gradients in later layers (seen in transformers' ResNet).
        if active == 1 or not self.lanes.are_even or len(parts[0]) == 1:
            return joined([self._normalised(part, slice(lane, lane + 1)) for lane, part in enumerate(parts)])
        # Lanes of equal length need one call only, with the channels of all lanes as its channels.
        y_BGHW = self._normalised(x.unflatten(0, (active, -1)).transpose(0, 1).flatten(1, 2), slice(active))
        return y_BGHW.view(-1, active, *x.shape[1:]).transpose(0, 1).flatten(0, 1)

    def _normalised(self, x_BGHW: Tensor, lanes: slice) -> Tensor:
        """`x_BGHW`, normalised by its statistics, which also update the running ones; G: the channels of `lanes`."""
        mean_AC, var_AC = self.running_mean[lanes], self.running_var[lanes]
        bias_G = self.bias[lanes].flatten()
        if x_BGHW.numel() == x_BGHW.shape[1]:
            # PyTorch refuses one value per channel. Its mean is the value; the running variance does not change.
            mean_AC.lerp_(x_BGHW.detach().view(mean_AC.shape).to(mean_AC.dtype), self.momentum)
            return 0 * x_BGHW + bias_G.view(-1, 1, 1)
        # Copies, because autograd keeps them, and an update of the next lane would change the same memory.
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
    """Group norm with a weight and a bias per lane; mean and variance are those of each sample."""

    def __init__(self, lanes: Lanes, layer: nn.GroupNorm) -> None:
        super().__init__(lanes, instead_of=layer)
        self.num_groups = layer.num_groups
        self.eps = layer.eps
        self.weight = lane_parameter(lanes, layer.weight)
        self.bias = lane_parameter(lanes, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] to the same shape."""
        normed = functional.group_norm(x, self.num_groups, eps=self.eps)
        return scaled(self.lanes, normed, self.weight, self.bias, axis=1).to(x.dtype)


def tune_norms(backbone: Backbone, lanes: Lanes) -> dict[str, TensorSpec]:
    """Replaces every batch norm and group norm of the model by one with lanes; returns their specification.

    A norm whose class computes something else is left out, with a warning in the log.
    """
    shared = backbone.batch_norm != "local"
    tensors: dict[str, TensorSpec] = {}
    unusual: dict[str, str] = {}
    for path, layer in list(untouched(backbone.module).values()):
        kind = next((kind for kind in (nn.BatchNorm2d, nn.GroupNorm) if isinstance(layer, kind)), None)
        if kind is not None and (problem := oddity(layer, kind)):
            unusual[path] = problem
            continue
        if isinstance(layer, nn.BatchNorm2d):
            if not (layer.affine and layer.track_running_stats):
                raise ModelError(f"the batch norm `{path}` lacks weight and bias or running statistics; expected both.")
            replace(backbone.module, path, LaneBatchNorm(lanes, layer))
        elif isinstance(layer, nn.GroupNorm) and layer.affine:
            replace(backbone.module, path, LaneGroupNorm(lanes, layer))
        else:
            continue
        shape = tuple(layer.weight.shape)
        tensors |= {f"{path}.{name}": TensorSpec(shape, path, shared=shared) for name in ("weight", "bias")}
        if isinstance(layer, nn.BatchNorm2d):
            statistic = TensorSpec(shape, path, trained=False, shared=shared)
            tensors |= {f"{path}.{name}": statistic for name in ("running_mean", "running_var")}
    if unusual:
        path, problem = next(iter(unusual.items()))
        more = f" {len(unusual) - 1} more are not tuned for such reasons." if len(unusual) > 1 else ""
        logger.warning("the norm `%s` is not tuned: it %s.%s", path, problem, more)
    return tensors


@torch.no_grad()
def merge_norms(backbone: Backbone) -> None:
    """Replaces the lanes of every norm by a plain layer with the values of lane 0."""
    for path, layer in list(backbone.module.named_modules()):
        if isinstance(layer, LaneBatchNorm):
            plain: nn.Module = nn.BatchNorm2d(layer.weight.shape[1], eps=layer.eps, momentum=layer.momentum)
        elif isinstance(layer, LaneGroupNorm):
            plain = nn.GroupNorm(layer.num_groups, layer.weight.shape[1], eps=layer.eps)
        else:
            continue
        plain.load_state_dict({name: value[0] for name, value in layer.state_dict().items()}, strict=False)
        replace(backbone.module, path, plain.to(layer.weight).eval().requires_grad_(False))
