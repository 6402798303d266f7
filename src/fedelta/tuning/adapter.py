"""Bottleneck adapter: two small linear layers at the MLP of every block, inside its residual branch, and the head.

    sequential:  y = MLP(x');  y <- y + scale Up(act(Down(y)))
    parallel:    y = MLP(x');  y <- y + scale Up(act(Down(x')))

x' is the residual stream; MLP(x') includes the norm before the MLP, if there is one. The parallel form is AdaptFormer.

As in FedPEFT, one pair of layers serves all blocks (`shared`), or all blocks of one width if widths differ. In the
authors' code both layers are initially zero (`init = "zero_all"`). Since GELU(0) = 0, the gradients of both matrices
are then always zero, and only the bias of Up is trained. Our default draws Down like a linear layer and sets Up to
zero, as in LoRA.

Source: Sun et al. 2022 (FedPEFT, arXiv 2210.01708), prototype "Adapter", sizes of the authors' code; the bottleneck
after Houlsby et al. 2019 (arXiv 1902.00751); parallel: Chen et al. 2022 (AdaptFormer, arXiv 2205.13535).

Shapes: N samples of all lanes in use, T tokens, D features of the block, R features of the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.models.layers import matrix_shape
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import (
    block_paths,
    merge_head,
    misfit,
    replace,
    role_paths,
    specification,
    specify,
    tune_head,
    untouched,
)
from fedelta.tuning.lanes import LaneLinear, LaneModule, Lanes, Wrapper, random_like

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}


class Adapter(Settings):
    """Trains bottleneck adapters, and the head.

    Args:
        reduction_factor: the bottleneck has D // reduction_factor features.
        non_linearity: act, the function between the two layers.
        shared: whether all blocks of one width share an adapter; with False each block has its own.
        placement: `sequential` or `parallel`.
        scale: factor of the adapter's output.
        init: with `lora` the initial Down is Kaiming-uniform (a = sqrt 5) and Up zero, with `zero_all` both are zero.
    """

    name: Literal["adapter"] = "adapter"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = False  # a non-linear layer cannot be folded into a linear one
    starts_as_base: ClassVar[bool] = True
    reduction_factor: int = Field(default=8, ge=1)  # FedPEFT
    non_linearity: Literal["gelu", "relu", "silu"] = "gelu"  # FedPEFT
    shared: bool = True  # FedPEFT's code
    placement: Literal["sequential", "parallel"] = "sequential"  # FedPEFT; the Accumulator's code has parallel ones
    scale: float = Field(default=1.0, gt=0)  # FedPEFT; AdaptFormer and the Accumulator's code: 0.1
    init: Literal["lora", "zero_all"] = "lora"  # our choice: with FedPEFT's zero_all the matrices never learn

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        paths = role_paths(backbone, "fc2")
        if not paths:
            raise misfit(self.name, backbone, "it has no blocks with an MLP that are known")
        layers = untouched(backbone.module)
        tensors: dict[str, TensorSpec] = {}
        adapters: dict[int, Bottleneck] = {}  # by width: the stages of a model may differ in it
        for path, block in zip(paths, block_paths(backbone), strict=True):
            current, layer = layers[path]
            width = matrix_shape(layer)[0]
            if width not in adapters or not self.shared:
                adapters[width] = self._bottleneck(lanes, layer, path, generator)
                tensors |= specify(f"{current}.adapter", adapters[width])
            tap = self._tap(backbone, lanes, block) if self.placement == "parallel" else None
            # A tap may wrap the whole MLP, which changes the path of its last layer.
            current, layer = untouched(backbone.module)[path] if tap else (current, layer)
            replace(backbone.module, current, Adapted(lanes, layer, adapters[width], self.scale, tap))
        return specification(backbone, tensors | tune_head(backbone, lanes))

    def merge(self, backbone: Backbone) -> None:
        """Folds the head; the adapters stay, with all their lanes."""
        merge_head(backbone)

    def _tap(self, backbone: Backbone, lanes: Lanes, block: str) -> Tap:
        """Adds a tap at the layer through which the MLP of `block` (original path) reads the residual stream."""
        entrance = backbone.anatomy.mlp_input
        if not entrance:
            raise misfit(self.name, backbone, "it is not known where its MLPs read the residual stream")
        current, layer = untouched(backbone.module)[f"{block}.{entrance}"]
        tap = Tap()
        replace(backbone.module, current, Tapped(lanes, layer, tap))
        return tap

    def _bottleneck(self, lanes: Lanes, layer: nn.Module, path: str, generator: Generator) -> Bottleneck:
        weight, width = layer.get_parameter("weight"), matrix_shape(layer)[0]
        inner = width // self.reduction_factor
        if inner < 1:
            raise ModelError(
                f"`tuning.reduction_factor` is {self.reduction_factor}, more than the {width} features of `{path}`.",
                hint=f"use at most {width}.",
            )
        bound = 1 / math.sqrt(width) if self.init == "lora" else 0.0
        down_RD = random_like(weight, (inner, width), lambda t: t.uniform_(-bound, bound, generator=generator))
        down = LaneLinear(lanes, down_RD, weight.new_zeros(inner))
        up = LaneLinear(lanes, weight.new_zeros(width, inner), weight.new_zeros(width))
        return Bottleneck(lanes, down, up, self.non_linearity)


class Bottleneck(LaneModule):
    """Up(act(Down(y))), per lane."""

    def __init__(self, lanes: Lanes, down: LaneLinear, up: LaneLinear, non_linearity: str) -> None:
        super().__init__(lanes)
        self.down = down
        self.up = up
        self.non_linearity = non_linearity

    def forward(self, y: Tensor) -> Tensor:
        """[N, T, D] to the same shape."""
        change: Tensor = self.up(_ACTIVATIONS[self.non_linearity](self.down(y)))
        return change


class Tap:
    """Carries the residual stream from the layer that reads it to the adapter at the end of the MLP."""

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def put(self, value: Tensor) -> None:
        """Stores the residual stream; called before `take`, once in every forward pass."""
        self._value = value

    def take(self) -> Tensor:
        """Returns the stored value and forgets it."""
        value, self._value = self._value, None
        if value is None:
            raise RuntimeError("the last layer of an MLP ran before the layer that reads its input")
        return value


class Tapped(Wrapper):
    """A layer that also passes its input to an adapter."""

    def __init__(self, lanes: Lanes, base: nn.Module, tap: Tap) -> None:
        super().__init__(lanes, base)
        self.tap = tap

    def forward(self, x: Tensor) -> Tensor:
        """The output of the wrapped layer."""
        self.tap.put(x)
        y: Tensor = self.base(x)
        return y


class Adapted(Wrapper):
    """The last layer of an MLP with an adapter after it or, with a tap, in parallel to the MLP."""

    def __init__(self, lanes: Lanes, base: nn.Module, adapter: Bottleneck, scale: float, tap: Tap | None) -> None:
        super().__init__(lanes, base)
        self.adapter = adapter
        self.scale = scale
        self.tap = tap

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, I] to [N, T, D]."""
        y: Tensor = self.base(x)
        changed: Tensor = torch.add(y, self.adapter(y if self.tap is None else self.tap.take()), alpha=self.scale)
        return changed
