"""Bottleneck adapter: two small linear layers behind the MLP of every block, inside its residual branch, and the head.

    y = MLP(x);  y <- y + Up(act(Down(y)))

As in FedPEFT one pair of layers serves all blocks (`shared`). The authors' code starts both layers at zero (`init =
"zero_all"`). Then GELU(0) = 0 keeps both matrices at zero for ever and only the bias of Up learns; the default starts
Down as a linear layer does and Up at zero, as LoRA does.

Source: Sun et al. 2022 (FedPEFT, arXiv 2210.01708), prototype "Adapter", sizes of the authors' code; the bottleneck
after Houlsby et al. 2019 (arXiv 1902.00751).

Shapes: K lanes, D features of the block, R features of the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import merge_head, misfit, replace, role_paths, specification, specify, tune_head, untouched
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
        non_linearity: between the two layers.
        shared: one adapter for all blocks; False gives each block its own.
        init: `lora` starts Down Kaiming-uniform (a = sqrt 5) and Up at zero, `zero_all` both at zero.
    """

    name: Literal["adapter"] = "adapter"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = False  # a non-linear layer cannot be folded into a linear one
    reduction_factor: int = Field(default=8, ge=1)  # FedPEFT
    non_linearity: Literal["gelu", "relu", "silu"] = "gelu"  # FedPEFT
    shared: bool = True  # FedPEFT's code
    init: Literal["lora", "zero_all"] = "lora"  # our choice: with FedPEFT's zero_all the matrices never learn

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        paths = role_paths(backbone, "fc2")
        if not paths:
            raise misfit(self.name, backbone, "it has no blocks with an MLP that are known")
        layers = untouched(backbone.module)
        tensors: dict[str, TensorSpec] = {}
        for own in paths:
            now, layer = layers[own]
            if own == paths[0] or not self.shared:
                adapter = self._bottleneck(lanes, layer, own, generator)
                tensors |= specify(f"{now}.adapter", adapter)
            replace(backbone.module, now, Adapted(lanes, layer, adapter))
        return specification(backbone, tensors | tune_head(backbone, lanes))

    def merge(self, backbone: Backbone) -> None:
        """Folds the head; the adapters stay, with all their lanes."""
        merge_head(backbone)

    def _bottleneck(self, lanes: Lanes, layer: nn.Module, path: str, generator: Generator) -> Bottleneck:
        weight_DI = layer.get_parameter("weight")
        width, inner = weight_DI.shape[0], weight_DI.shape[0] // self.reduction_factor
        if inner < 1:
            raise ModelError(
                f"`tuning.reduction_factor` is {self.reduction_factor}, more than the {width} features of `{path}`.",
                hint=f"use at most {width}.",
            )
        bound = 1 / math.sqrt(width) if self.init == "lora" else 0.0
        down_RD = random_like(weight_DI, (inner, width), lambda t: t.uniform_(-bound, bound, generator=generator))
        down = LaneLinear(lanes, down_RD, weight_DI.new_zeros(inner))
        up = LaneLinear(lanes, weight_DI.new_zeros(width, inner), weight_DI.new_zeros(width))
        return Bottleneck(lanes, down, up, self.non_linearity)


class Bottleneck(LaneModule):
    """Up(act(Down(y))), per lane."""

    def __init__(self, lanes: Lanes, down: LaneLinear, up: LaneLinear, non_linearity: str) -> None:
        super().__init__(lanes)
        self.down = down
        self.up = up
        self.non_linearity = non_linearity

    def forward(self, y: Tensor) -> Tensor:
        """[active * B, T, D] to the same shape."""
        change: Tensor = self.up(_ACTIVATIONS[self.non_linearity](self.down(y)))
        return change


class Adapted(Wrapper):
    """The last layer of an MLP, and an adapter behind it."""

    def __init__(self, lanes: Lanes, base: nn.Module, adapter: Bottleneck) -> None:
        super().__init__(lanes, base)
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """[active * B, T, I] to [active * B, T, D]."""
        y: Tensor = self.base(x)
        changed: Tensor = y + self.adapter(y)
        return changed
