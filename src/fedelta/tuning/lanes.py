"""Lanes: many clients in one forward pass of a shared frozen model.

Every tuned tensor has a leading lane axis. The model gets the samples of all lanes in use, lane after lane and without
padding, however many each lane has. The tuned tensors of lane k are applied only to the samples of lane k. No tensor
belongs to two clients, so the gradient of the summed loss holds in each lane the gradient of that client's loss.

Shapes: K lanes, A lanes in use, N samples of all lanes in use, or several entries for each of them, I in features,
O out features.
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
        lengths: inside `training`, the number of samples of each lane in use; None outside, where all have the same.
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
            lengths: number of samples of each lane in use, at least one.
            noise: generator of each lane for dropout.
        """
        self.active, self.lengths, self._noise = len(lengths), lengths, noise
        try:
            yield
        finally:
            self.lengths, self._noise = None, ()

    @contextmanager
    def counting(self, lengths: Sequence[int]) -> Iterator[None]:
        """Inside `training`, a context in which lanes have other numbers of entries than samples, such as tokens."""
        before = self.lengths
        if before is not None:
            self.lengths = lengths
        try:
            yield
        finally:
            self.lengths = before

    def limit(self, num: int, tuned: Sequence[nn.Parameter]) -> None:
        """Takes away all lanes but the first `num`, from these tuned tensors [num, ...] as well."""
        self.num = self.active = num
        for parameter in tuned:
            parameter.data = parameter.data[:num]

    def used(self, tensor: Tensor) -> Tensor:
        """The lanes in use of a tuned tensor [num, ...]."""
        return tensor if self.active == self.num else tensor[: self.active]

    @property
    def are_even(self) -> bool:
        """Whether all lanes in use have the same number of samples."""
        return self.lengths is None or min(self.lengths) == max(self.lengths)

    def entries(self, x: Tensor) -> list[int]:
        """The number of entries of each lane in use along the first axis of `x`: its samples, or several for each.

        Raises:
            ModelError: several lanes are in use and the first axis does not hold the samples, so that lanes would mix.
        """
        if self.active == 1:
            return [x.shape[0]]
        lengths = self.lengths or (1,) * self.active
        entries_per_sample, num_left = divmod(x.shape[0], sum(lengths))
        if num_left or not entries_per_sample:
            raise ModelError(
                f"a tuned layer has an input or output of shape {list(x.shape)}, which {self.active} lanes cannot "
                f"share: expected {sum(lengths)} samples, or a multiple, along its first axis.",
                hint="set `runtime.lanes = 1`.",
            )
        return [length * entries_per_sample for length in lengths]

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """The entries of each lane in use of `x` [N, ...], as views."""
        if self.active == 1:
            return [x]
        parts: Sequence[Tensor] = x.split(self.entries(x))
        return parts

    def repeat(self, tensor: Tensor, x: Tensor) -> Tensor:
        """A tuned tensor [num, ...] for every entry of `x` [N, ...]: [N, ...]."""
        entries, used = self.entries(x), self.used(tensor)
        if self.are_even:
            return used.unsqueeze(1).expand(-1, entries[0], *used.shape[1:]).reshape(x.shape[0], *used.shape[1:])
        return torch.cat([value.expand(num, *value.shape) for value, num in zip(used, entries, strict=True)])

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """`x` [N, ...] with elements set to zero at random in training; each lane has its own generator."""
        if self.lengths is None or probability == 0:
            return x
        is_kept = [
            torch.rand(num, *x.shape[1:], generator=generator) >= probability
            for num, generator in zip(self.entries(x), self._noise, strict=True)
        ]
        return x * torch.cat(is_kept).to(x.device, x.dtype) / (1 - probability)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A linear layer per lane: [N, ..., I] to [N, ..., O].

        Args:
            x: [N, ..., I].
            weight: a tuned tensor [num, O, I].
            bias: a tuned tensor [num, O].
        """
        parts, weight_AOI = self.split(x), self.used(weight)
        biases = [None] * self.active if bias is None else self.used(bias).unbind()
        if self.active == 1 or not self.are_even:
            layers = zip(parts, weight_AOI, biases, strict=True)
            return joined([functional.linear(part, *layer) for part, *layer in layers])
        x_ANI, weight_AIO = x.reshape(self.active, -1, x.shape[-1]), weight_AOI.transpose(1, 2)
        if bias is None:
            y_ANO = torch.bmm(x_ANI, weight_AIO)
        else:
            y_ANO = torch.baddbmm(self.used(bias).unsqueeze(1), x_ANI, weight_AIO)
        return y_ANO.view(*x.shape[:-1], -1)

    def add_linear(self, y: Tensor, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        """`y` [N, ..., O] plus `scale` times a linear layer per lane of `x` [N, ..., I]; for `weight` see `linear`."""
        weight_AIO = self.used(weight).transpose(1, 2)
        if self.are_even:
            self.entries(y), self.entries(x)  # an error where lanes cannot share them
            y_ANO, x_ANI = (tensor.reshape(self.active, -1, tensor.shape[-1]) for tensor in (y, x))
            return torch.baddbmm(y_ANO, x_ANI, weight_AIO, alpha=scale).view(y.shape)
        sums = [
            torch.addmm(y_part.flatten(0, -2), x_part.flatten(0, -2), weight_IO, alpha=scale)
            for y_part, x_part, weight_IO in zip(self.split(y), self.split(x), weight_AIO, strict=True)
        ]
        return joined(sums).view(y.shape)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The entries of all lanes along one axis, lane after lane; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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
        """[N, ..., I] to [N, ..., O]."""
        return self.lanes.linear(x, self.weight, self.bias)


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
        """[N, ..., D] to the same shape."""
        normed = functional.layer_norm(x, self.weight.shape[-1:])
        return scaled(self.lanes, normed, self.weight, self.bias, axis=-1)


def scaled(lanes: Lanes, x: Tensor, scale: Tensor, shift: Tensor, *, axis: int) -> Tensor:
    """`scale * x + shift` with tuned tensors [num, C], for x [N, ...] with the C features along `axis`."""
    shape = [x.shape[0], *[1] * (x.dim() - 1)]  # not `len(x)`: an exported model takes other numbers of samples
    shape[axis] = scale.shape[1]
    scale_N, shift_N = (lanes.repeat(tensor, x).view(shape) for tensor in (scale, shift))
    return torch.addcmul(shift_N, x, scale_N)


def add_pointwise(lanes: Lanes, y: Tensor, x: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """Adds a 1x1 convolution per lane to `y`: y + scale * (weight x) at every pixel.

    Args:
        lanes: shared by all tuning modules of the model.
        y: [N, O, H, W].
        x: [N, I, H, W].
        weight: a tuned tensor [num, O, I].
        scale: factor of the convolution.

    Returns:
        [N, O, H, W] with channels last in memory, where pixels are the rows of a matrix product.
    """
    x_NHWI, y_NHWO = x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)
    return lanes.add_linear(y_NHWO, x_NHWI, weight, scale).permute(0, 3, 1, 2)
