"""Classification heads with lanes, for the exits of a model.

Shapes: N samples of all lanes in use, D features, C classes.
"""

from __future__ import annotations

import math

from torch import Generator, Tensor, nn
from torch.nn import functional

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.models.layers import matrix_shape
from fedelta.tuning.lanes import LaneLayerNorm, LaneLinear, LaneModule, Lanes, random_like


class Classifier(LaneModule):
    """A head per lane: optionally a layer norm, optionally a hidden layer with GELU, and a linear layer.

    Args:
        lanes: shared by all tuning modules of the model.
        width: D.
        num_classes: C.
        inner: features of the hidden layer; None for no hidden layer.
        norm: whether a layer norm comes first.
        generator: draws the weights, in the distribution of PyTorch's linear layers.
        like: a tensor of the model, for device and dtype.
    """

    def __init__(
        self, lanes: Lanes, width: int, num_classes: int, *, inner: int | None, norm: bool, generator: Generator,
        like: Tensor,
    ) -> None:  # fmt: skip
        super().__init__(lanes)
        self.norm = LaneLayerNorm(lanes, width, like) if norm else None
        self.hidden = None if inner is None else drawn_linear(lanes, width, inner, generator, like)
        self.out = drawn_linear(lanes, inner or width, num_classes, generator, like)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] to [N, C]."""
        if self.norm is not None:
            x = self.norm(x)
        if self.hidden is not None:
            x = functional.gelu(self.hidden(x))
        logits: Tensor = self.out(x)
        return logits


def drawn_linear(
    lanes: Lanes, fan_in: int, fan_out: int, generator: Generator, like: Tensor, *, bias: bool = True
) -> LaneLinear:
    """A linear layer with PyTorch's initial distribution, uniform within ±1 / sqrt(fan_in), equal in all lanes."""
    bound = 1 / math.sqrt(fan_in)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return random_like(like, shape, lambda tensor: nn.init.uniform_(tensor, -bound, bound, generator=generator))

    return LaneLinear(lanes, draw((fan_out, fan_in)), draw((fan_out,)) if bias else None)


def num_classes(backbone: Backbone) -> int:
    """The number of classes of the model: the rows of the last linear layer in its head.

    Raises:
        ModelError: the head has no linear layer.
    """
    head = backbone.module.get_submodule(backbone.anatomy.head[-1])
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ModelError(
            f"the head {list(backbone.anatomy.head)} has no linear layer, so the number of classes is unknown."
        )
    return layers[-1].out_features


def width_of(backbone: Backbone) -> int:
    """D, the number of features of a token."""
    query = backbone.module.get_submodule(f"{backbone.anatomy.blocks}.0.{backbone.anatomy.roles['q']}")
    return matrix_shape(query)[1]
