"""Lanes: many clients in one forward pass of a shared frozen model.

Every tuned tensor has a leading lane axis. The model sees `active * B` samples, lane after lane; the tuned
tensors of lane k see only the B samples of lane k, through batched matrix products. Clients are independent,
so the gradient of the summed loss is, in each lane, exactly that client's own.

Shapes: K lanes, A lanes in use, N rows of one lane (samples times tokens), I in features, O out features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from fedelta.errors import ModelError


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

    def per_lane(self, x: Tensor) -> int:
        """Entries of each lane along the first axis of `x`: its samples, or several of each, such as windows.

        Raises:
            ModelError: the first axis is not that of the samples, so that lanes would read each other's. With one lane
                there is nothing to mix, and any axis will do.
        """
        samples = self.active * max(self.lengths or (1,))
        if self.active > 1 and x.shape[0] % samples:
            raise ModelError(
                f"a tuned layer reads or gives a tensor {list(x.shape)}, which {self.active} lanes cannot share: "
                f"expected the {samples} samples along its first axis.",
                hint="set `runtime.lanes = 1`.",
            )
        return x.shape[0] // self.active

    def entries(self, per_lane: int) -> list[int]:
        """Inside `training`: those of the `per_lane` entries of each lane that are no padding."""
        lengths = self.lengths or ()
        return [length * (per_lane // max(lengths)) for length in lengths]

    def fold(self, x: Tensor) -> Tensor:
        """[active * B, ..., F] to [active, N, F]."""
        self.per_lane(x)
        return x.reshape(self.active, -1, x.shape[-1])

    def split(self, x: Tensor) -> Tensor:
        """[active * B, ...] to [active, B, ...]."""
        return x.view(self.active, self.per_lane(x), *x.shape[1:])

    def repeat(self, tensor: Tensor, x: Tensor) -> Tensor:
        """A tuned tensor [num, ...] for every sample of `x` [active * B, ...]: [active * B, ...]."""
        used = self.used(tensor)
        return used.unsqueeze(1).expand(-1, self.per_lane(x), *used.shape[1:]).reshape(x.shape[0], *used.shape[1:])

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """`x` [active * B, ...] with elements dropped in training; each lane draws from its own generator.

        Padding draws nothing, so that a client's noise does not depend on the other lanes.
        """
        if self.lengths is None or probability == 0:
            return x
        per_lane = self.per_lane(x)
        kept_AB = x.new_zeros(self.active, per_lane, *x.shape[1:])
        for lane, (length, generator) in enumerate(zip(self.entries(per_lane), self._noise, strict=True)):
            drawn = torch.rand(length, *x.shape[1:], generator=generator) >= probability
            kept_AB[lane, :length] = drawn.to(x.device, x.dtype)
        return x * kept_AB.view(x.shape) / (1 - probability)


class LaneModule(nn.Module):
    """What a tuning method puts into a model.

    Args:
        lanes: of the model.
        instead_of: the layer in whose place it stands, if there was one: models read sizes off their layers.
    """

    def __init__(self, lanes: Lanes, instead_of: nn.Module | None = None) -> None:
        super().__init__()
        self.lanes = lanes
        self._traits = {} if instead_of is None else _traits(instead_of)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As PyTorch's, also for a name that the layer inside has: the tuned tensor stands in front of it."""
        self._parameters.setdefault(name, None)
        super().register_parameter(name, param)

    # Any: whatever the model's layer had under that name.
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            traits = vars(self).get("_traits", {})
            if name not in traits:
                raise
            return traits[name]


class Wrapper(LaneModule):
    """A lane module around the frozen module `base`, in whose place it stands.

    Other tuning methods find their layers inside of `base` (`tuning.base.untouched`).
    """

    def __init__(self, lanes: Lanes, base: nn.Module) -> None:
        super().__init__(lanes)
        self.base = base

    # Any: models read whatever they know of their layers: `weight.dtype`, `kernel_size`, `bias`, methods of a block.
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = vars(self).get("_modules", {}).get("base")
            if base is None or name.startswith("__"):
                raise
            return getattr(base, name)


def _traits(layer: nn.Module) -> dict[str, object]:
    """The numbers and words that a layer was made with, such as `in_features`; nothing that is PyTorch's own."""
    return {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and name != "training" and isinstance(value, bool | int | float | str | tuple)
    }


def lane_parameter(lanes: Lanes, value: Tensor) -> nn.Parameter:
    """A tuned tensor [num, *value.shape] that starts as `value` in every lane."""
    return nn.Parameter(value.detach().expand(lanes.num, *value.shape).clone())


def random_like(reference: Tensor, shape: tuple[int, ...], draw: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor drawn on the CPU by `draw`, then moved to where `reference` is, so that bits do not depend on it."""
    return draw(torch.empty(shape, dtype=torch.float32)).to(reference.device, reference.dtype)


class LaneLinear(LaneModule):
    """A linear layer with a weight and a bias per lane."""

    def __init__(
        self, lanes: Lanes, weight_OI: Tensor, bias_O: Tensor | None, instead_of: nn.Module | None = None
    ) -> None:
        super().__init__(lanes, instead_of)
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
