"""Parallel adapters: a 1x1 convolution A beside every 3x3 convolution, all norms, and the head are trained.

    y = BN( Conv3x3(x) + A(x) )

A has the channels and the stride of the frozen 3x3 convolution and no bias. It reads the pixels under the centre of the
3x3 kernel, so `merge` adds it to the centre of the kernel without an approximation.

Differs from Rebuffi et al.: there is no dropout before A, which in their code is optional and off by default.

Source: Elvebakken et al. 2023 (arXiv 2302.02949); Rebuffi et al. 2018 (arXiv 1803.10082), section 3.2 and their code.

Shapes: N samples of all lanes in use, I and O channels in and out.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

from torch import Generator, Tensor, nn

from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import (
    is_plain_3x3,
    merge_head,
    misfit,
    replace,
    ride_along,
    specification,
    tune_head,
    untouched,
)
from fedelta.tuning.lanes import Lanes, Wrapper, add_pointwise, lane_parameter, random_like
from fedelta.tuning.norms import merge_norms, tune_norms


class Parallel(Settings):
    """Trains 1x1 convolutions beside the 3x3 ones, the norms, and the head.

    Args:
        init: the initial A; `he` is He-normal over fan-out, which changes the pre-trained model's outputs; `zero` keeps
            them.
    """

    name: Literal["parallel"] = "parallel"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = True
    init: Literal["he", "zero"] = "he"  # Rebuffi et al.

    @property
    def starts_as_base(self) -> bool:
        """Whether the initial A is zero."""
        return self.init == "zero"

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        tensors: dict[str, TensorSpec] = {}
        for path, layer in untouched(backbone.module).values():
            if not isinstance(layer, nn.Conv2d) or not is_plain_3x3(layer):
                continue
            weight = layer.get_parameter("weight")
            out_channels, in_channels = weight.shape[:2]
            std = math.sqrt(2 / out_channels) if self.init == "he" else 0.0
            draw = partial(nn.init.normal_, std=std, generator=generator)
            start_OI = random_like(weight, (out_channels, in_channels), draw)
            replace(backbone.module, path, ParallelConv(lanes, layer, start_OI))
            tensors[f"{path}.parallel"] = TensorSpec((out_channels, in_channels), path)
        if not tensors:
            raise misfit(self.name, backbone, "it has no 3x3 convolution of padding 1 without groups and dilation")
        tensors |= tune_norms(backbone, lanes) | tune_head(backbone, lanes)
        return ride_along(specification(backbone, tensors))

    def merge(self, backbone: Backbone) -> None:
        """Adds A of lane 0 to the centre of each 3x3 kernel."""
        for path, layer in list(backbone.module.named_modules()):
            if isinstance(layer, ParallelConv):
                layer.base.get_parameter("weight").data[:, :, 1, 1] += layer.parallel[0].detach()
                replace(backbone.module, path, layer.base)
        merge_norms(backbone)
        merge_head(backbone)


class ParallelConv(Wrapper):
    """A frozen 3x3 convolution with a parallel 1x1 convolution per lane."""

    def __init__(self, lanes: Lanes, base: nn.Conv2d, start_OI: Tensor) -> None:
        super().__init__(lanes, base)
        self.parallel = lane_parameter(lanes, start_OI)
        self.rows, self.columns = base.stride

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] to [N, O, H / stride, W / stride]."""
        return add_pointwise(self.lanes, self.base(x), x[:, :, :: self.rows, :: self.columns], self.parallel)
