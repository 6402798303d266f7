"""Lanes: many clients in one forward pass of a shared frozen model.

Every tuned tensor has a leading lane axis. The model gets `active * B` samples, lane after lane. The tuned tensors of
lane k are applied only to the B samples of lane k, with batched matrix products. No tensor belongs to two clients, so
the gradient of the summed loss holds in each lane the gradient of that client's loss.

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
    """The number of lanes, the number of lanes in use, and whether a training step is under way.

    One object is shared by all tuning modules of a model.

    Args:
        num: number of lanes.

    Attributes:
        active: number of lanes in use, the first ones; set by the code that runs the model.
        lengths: inside `training`, the number of samples of each lane in use without padding; None outside.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self.active = num
        self.lengths: Sequence[int] | None = None
        self._noise: Sequence[Generator] = ()

    @contextmanager
    def training(self, lengths: Sequence[int], noise: Sequence[Generator]) -> Iterator[None]:
        """A context for a training step, in which norms use batch statistics and dropout is on.

        Args:
            lengths: number of samples of each lane in use; further samples of a lane are padding.
            noise: generator of each lane for dropout.
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
        """The number of entries of each lane along the first axis of `x`: its samples, or several entries per sample.

        Raises:
            ModelError: several lanes are in use and the first axis does not hold the samples, so that lanes would mix.
        """
        samples = self.active * max(self.lengths or (1,))
        if self.active > 1 and x.shape[0] % samples:
            raise ModelError(
                f"a tuned layer has an input or output of shape {list(x.shape)}, which {self.active} lanes cannot "
                f"share: expected {samples} samples, or a multiple, along its first axis.",
                hint="set `runtime.lanes = 1`.",
            )
        return x.shape[0] // self.active

    def entries(self, per_lane: int) -> list[int]:
        """How many of the `per_lane` entries of each lane are not padding; for use inside `training`."""
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
        """`x` [active * B, ...] with elements set to zero at random in training; each lane has its own generator.

        Nothing is drawn for padding, so that a client's noise does not depend on the other lanes.
        """
        if self.lengths is None or probability == 0:
            return x
        per_lane = self.per_lane(x)
        mask_AB = x.new_zeros(self.active, per_lane, *x.shape[1:])
        for lane, (length, generator) in enumerate(zip(self.entries(per_lane), self._noise, strict=True)):
            is_kept = torch.rand(length, *x.shape[1:], generator=generator) >= probability
            mask_AB[lane, :length] = is_kept.to(x.device, x.dtype)
        return x * mask_AB.view(x.shape) / (1 - probability)


class LaneModule(nn.Module):
    """The base of every module that a tuning method adds to a model.

    Args:
        lanes: shared by all tuning modules of the model.
        instead_of: the layer that it replaces, if any. Models read attributes such as `in_features` of their layers.
    """

    def __init__(self, lanes: Lanes, instead_of: nn.Module | None = None) -> None:
        super().__init__()
        self.lanes = lanes
        self._traits = {} if instead_of is None else _traits(instead_of)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in PyTorch, but also for a name that the wrapped layer has; the tuned tensor then hides the layer's."""
        # PyTorch refuses a name for which `hasattr` is true, and `Wrapper` passes attributes of its base on.
        self._parameters.setdefault(name, None)
        super().register_parameter(name, param)

    # Any: an attribute of the replaced layer.
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            traits = vars(self).get("_traits", {})
            if name not in traits:
                raise
            return traits[name]


class Wrapper(LaneModule):
    """A lane module that takes the place of the frozen module `base` and calls it.

    Other tuning methods find their layers inside `base` (`tuning.base.untouched`).
    """

    def __init__(self, lanes: Lanes, base: nn.Module) -> None:
        super().__init__(lanes)
        self.base = base

    # Any: models read many attributes of their layers, such as `weight.dtype`, `kernel_size` or methods of a block.
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = vars(self).get("_modules", {}).get("base")
            if base is None or name.startswith("__"):
                raise
            return getattr(base, name)


def _traits(layer: nn.Module) -> dict[str, object]:
    """The plain attributes of a layer, such as `in_features`, without PyTorch's private ones."""
    return {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and name != "training" and isinstance(value, bool | int | float | str | tuple)
    }


def lane_parameter(lanes: Lanes, value: Tensor) -> nn.Parameter:
    """A tuned tensor [num, *value.shape] whose initial value is `value` in every lane."""
    return nn.Parameter(value.detach().expand(lanes.num, *value.shape).clone())


def random_like(reference: Tensor, shape: tuple[int, ...], draw: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor that `draw` fills on the CPU, with the device and dtype of `reference`; bits do not depend on these."""
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
    """Layer norm with an affine transform per lane, initially the identity.

    Args:
        lanes: shared by all tuning modules of the model.
        width: D, number of features.
        like: a tensor of the model, for device and dtype.
    """

    def __init__(self, lanes: Lanes, width: int, like: Tensor) -> None:
        super().__init__(lanes)
        self.weight = lane_parameter(lanes, like.new_ones(width))
        self.bias = lane_parameter(lanes, like.new_zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[active * B, ..., D] to the same shape."""
        normed_KND = self.lanes.fold(functional.layer_norm(x, self.weight.shape[-1:]))
        weight_K1D, bias_K1D = (self.lanes.used(tensor).unsqueeze(1) for tensor in (self.weight, self.bias))
        return torch.addcmul(bias_K1D, normed_KND, weight_K1D).view(x.shape)


def add_pointwise(lanes: Lanes, y: Tensor, x: Tensor, weight_KOI: Tensor, scale: float = 1.0) -> Tensor:
    """Adds a 1x1 convolution per lane to `y`: y + scale * (weight x) at every pixel.

    Args:
        lanes: shared by all tuning modules of the model.
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
