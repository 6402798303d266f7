"""Lanes: many clients in one forward pass of a shared frozen model.

Every tuned tensor has a leading lane axis. The model sees `active * B` samples, lane after lane; the tuned
tensors of lane k see only the B samples of lane k, through batched matrix products. Clients are independent,
so the gradient of the summed loss is, in each lane, exactly that client's own.

Shapes: K lanes, A lanes in use, N rows of one lane (samples times tokens), I in features, O out features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional


class Lanes:
    """How many lanes there are, how many of them, from the first, are in use, and whether they train.

    Shared by all tuning modules of a model; whoever runs the model sets `active`.

    Args:
        num: number of lanes.

    Attributes:
        lengths: inside `training`, the samples of each lane in use that are no padding; None outside.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self.active = num
        self.lengths: Sequence[int] | None = None
        self._noise: Sequence[Generator] = ()

    @contextmanager
    def training(self, lengths: Sequence[int], noise: Sequence[Generator]) -> Iterator[None]:
        """A training step: norms take the statistics of the batch, and dropout drops.

        Args:
            lengths: samples of each lane, the lanes in use one after the other; what a lane has beyond is padding.
            noise: for the dropout of each lane.
        """
        self.active, self.lengths, self._noise = len(lengths), lengths, noise
        try:
            yield
        finally:
            self.lengths, self._noise = None, ()

    def used(self, tensor: Tensor) -> Tensor:
        """The lanes in use of a tuned tensor [num, ...]."""
        return tensor if self.active == self.num else tensor[: self.active]

    def fold(self, x: Tensor) -> Tensor:
        """[active * B, ..., F] to [active, N, F]."""
        return x.reshape(self.active, -1, x.shape[-1])

    def repeat(self, tensor: Tensor, num_samples: int) -> Tensor:
        """A tuned tensor [num, ...] for every one of `num_samples` samples: [num_samples, ...]."""
        used = self.used(tensor)
        per_lane = num_samples // self.active
        return used.unsqueeze(1).expand(-1, per_lane, *used.shape[1:]).reshape(num_samples, *used.shape[1:])

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """`x` [active * B, ...] with elements dropped in training; each lane draws from its own generator.

        Padding draws nothing, so that a client's noise does not depend on the other lanes.
        """
        if self.lengths is None or probability == 0:
            return x
        kept_AB = x.new_zeros(self.active, x.shape[0] // self.active, *x.shape[1:])
        for lane, (length, generator) in enumerate(zip(self.lengths, self._noise, strict=True)):
            drawn = torch.rand(length, *x.shape[1:], generator=generator) >= probability
            kept_AB[lane, :length] = drawn.to(x.device, x.dtype)
        return x * kept_AB.view(x.shape) / (1 - probability)


class LaneModule(nn.Module):
    """What a tuning method puts into a model.

    Args:
        lanes: of the model.
    """

    def __init__(self, lanes: Lanes) -> None:
        super().__init__()
        self.lanes = lanes


class Wrapper(LaneModule):
    """A lane module around the frozen module `base`, in whose place it stands.

    Other tuning methods find their layers inside of `base` (`tuning.base.untouched`).
    """

    def __init__(self, lanes: Lanes, base: nn.Module) -> None:
        super().__init__(lanes)
        self.base = base

    @property
    def weight(self) -> Tensor:
        """The weight of the frozen layer: models ask a layer for its dtype through it."""
        return self.base.weight if isinstance(self.base, Wrapper) else self.base.get_parameter("weight")


def lane_parameter(lanes: Lanes, value: Tensor) -> nn.Parameter:
    """A tuned tensor [num, *value.shape] that starts as `value` in every lane."""
    return nn.Parameter(value.detach().expand(lanes.num, *value.shape).clone())


def random_like(reference: Tensor, shape: tuple[int, ...], draw: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor drawn on the CPU by `draw`, then moved to where `reference` is, so that bits do not depend on it."""
    return draw(torch.empty(shape, dtype=torch.float32)).to(reference.device, reference.dtype)


class LaneLinear(LaneModule):
    """A linear layer with a weight and a bias per lane."""

    def __init__(self, lanes: Lanes, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__(lanes)
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


class LaneLayerNorm(LaneModule):
    """Layer norm with an affine transform per lane, which starts as the identity.

    Args:
        lanes: of the model.
        width: features, D.
        like: a tensor of the model, for device and dtype.
    """

    def __init__(self, lanes: Lanes, width: int, like: Tensor) -> None:
        super().__init__(lanes)
        self.weight = lane_parameter(lanes, like.new_ones(width))
        self.bias = lane_parameter(lanes, like.new_zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[active * B, ..., D] to the same shape."""
        normed_KND = self.lanes.fold(functional.layer_norm(x, self.weight.shape[-1:]))
        weight_K1D, bias_K1D = (self.lanes.used(each).unsqueeze(1) for each in (self.weight, self.bias))
        return torch.addcmul(bias_K1D, normed_KND, weight_K1D).view(x.shape)


def add_pointwise(lanes: Lanes, y: Tensor, x: Tensor, weight_KOI: Tensor, scale: float = 1.0) -> Tensor:
    """A 1x1 convolution per lane, added to `y`: y + scale * (weight x) at every pixel.

    Args:
        lanes: of the model.
        y: [active * B, O, H, W].
        x: [active * B, I, H, W].
        weight_KOI: a tuned tensor [num, O, I].
        scale: factor of the convolution.

    Returns:
        [active * B, O, H, W] with channels last in memory, where pixels are the rows of a matrix product.
    """
    x_NHWI, y_NHWO = x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)
    weight_KIO = lanes.used(weight_KOI).transpose(1, 2)
    sum_KNO = torch.baddbmm(lanes.fold(y_NHWO), lanes.fold(x_NHWI), weight_KIO, alpha=scale)
    return sum_KNO.view(y_NHWO.shape).permute(0, 3, 1, 2)
