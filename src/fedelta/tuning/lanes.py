"""Lanes: many clients in one forward pass of a shared frozen model.

Every tuned tensor has a leading lane axis. The model sees `active * B` samples, lane after lane; the tuned
tensors of lane k see only the B samples of lane k, through batched matrix products. Clients are independent,
so the gradient of the summed loss is, in each lane, exactly that client's own.

Shapes: K lanes, N rows of one lane (samples times tokens), I in features, O out features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Lanes:
    """How many lanes there are, and how many of them, from the first, are in use.

    Shared by all tuning modules of a model; whoever runs the model sets `active`.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self.active = num

    def used(self, tensor: Tensor) -> Tensor:
        """The lanes in use of a tuned tensor [num, ...]."""
        return tensor if self.active == self.num else tensor[: self.active]

    def fold(self, x: Tensor) -> Tensor:
        """[active * B, ..., F] to [active, N, F]."""
        return x.reshape(self.active, -1, x.shape[-1])


def lane_parameter(lanes: Lanes, value: Tensor) -> nn.Parameter:
    """A tuned tensor [num, *value.shape] that starts as `value` in every lane."""
    return nn.Parameter(value.detach().expand(lanes.num, *value.shape).clone())


def random_like(reference: Tensor, shape: tuple[int, ...], draw: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor drawn on the CPU by `draw`, then moved to where `reference` is, so that bits do not depend on it."""
    return draw(torch.empty(shape, dtype=torch.float32)).to(reference.device, reference.dtype)


class LaneLinear(nn.Module):
    """A linear layer with a weight and a bias per lane."""

    def __init__(self, lanes: Lanes, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.lanes = lanes
        self.weight = lane_parameter(lanes, weight_OI)
        self.bias = None if bias_O is None else lane_parameter(lanes, bias_O)

    def forward(self, x: Tensor) -> Tensor:
        """[active * B, ..., I] to [active * B, ..., O]."""
        x_KNI = self.lanes.fold(x)
        weight_KIO = self.lanes.used(self.weight).transpose(1, 2)
        if self.bias is None:
            y_KNO = torch.bmm(x_KNI, weight_KIO)
        else:
            y_KNO = torch.baddbmm(self.lanes.used(self.bias).unsqueeze(1), x_KNI, weight_KIO)
        return y_KNO.view(*x.shape[:-1], -1)


class LaneBias(nn.Module):
    """A frozen layer whose bias alone is tuned.

    Args:
        base: a layer with a `bias`, which is taken from it.
        channel_axis: axis of the layer's output that the bias belongs to.
    """

    def __init__(self, lanes: Lanes, base: nn.Module, channel_axis: int) -> None:
        super().__init__()
        self.lanes = lanes
        self.bias = lane_parameter(lanes, base.get_parameter("bias"))
        self.base = base
        self.channel_axis = channel_axis
        base.register_parameter("bias", None)

    @property
    def weight(self) -> Tensor:
        """The weight of the frozen layer: models ask a layer for its dtype through it."""
        return self.base.get_parameter("weight")

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the frozen layer takes and gives, the bias of each lane added."""
        y: Tensor = self.base(x)
        bias_KC = self.lanes.used(self.bias)
        axes = [1] * y.dim()
        axes[self.channel_axis] = -1
        y_KB = y.view(self.lanes.active, -1, *y.shape[1:])
        return (y_KB + bias_KC.view(self.lanes.active, *axes)).view(y.shape)
