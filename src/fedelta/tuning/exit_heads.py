"""Exit heads: a separate head after every block, the simplest kind of early exits.

    linear:  y_l = W_l c_l + b_l
    mlp:     y_l = W_l GELU(V_l LN(c_l) + u_l) + b_l

c_l is the class token in the output of block l. The model itself is unchanged, so exits do not share what they learn.

Source: the baselines in the code of Liu et al. 2022 (Accumulator, arXiv 2212.04084).

Shapes: as in exits.py.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Generator, Tensor, nn

from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import specification, specify
from fedelta.tuning.exits import OWN_HEAD, ExitBlock, Trace, class_token_blocks, layers_of, put_exits
from fedelta.tuning.heads import Classifier, num_classes, width_of
from fedelta.tuning.lanes import Lanes


class ExitHeads(Settings):
    """Trains a head after every block.

    Args:
        head: `linear` or `mlp`.
        head_width: hidden features of an `mlp` head.
    """

    name: Literal["exit-heads"] = "exit-heads"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = False  # a model has one head only
    starts_as_base: ClassVar[bool] = False  # the initial heads are random
    head: Literal["linear", "mlp"] = "linear"
    head_width: int = Field(default=1536, ge=1)  # the authors' code

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        blocks = layers_of(backbone, class_token_blocks(self.name, backbone))
        width, classes = width_of(backbone), num_classes(backbone)
        trace, exits = Trace(), []
        tensors: dict[str, TensorSpec] = {}
        for path, block in blocks:
            head = Classifier(
                lanes, width, classes, inner=self.head_width if self.head == "mlp" else None,
                norm=self.head == "mlp", generator=generator, like=next(block.parameters()),
            )  # fmt: skip
            exits.append((path, HeadBlock(lanes, block, trace, head)))
            tensors |= specify(f"{path}.{OWN_HEAD}", head)
        put_exits(backbone, lanes, exits)
        return specification(backbone, tensors)

    def merge(self, backbone: Backbone) -> None:
        """Does nothing: the heads stay in the model, with all lanes."""


class HeadBlock(ExitBlock):
    """A block followed by a separate head."""

    def __init__(self, lanes: Lanes, base: nn.Module, trace: Trace, exit_head: Classifier) -> None:
        super().__init__(lanes, base, trace)
        self.exit_head = exit_head

    def observe(self, y: Tensor) -> Tensor:
        """See `ExitBlock.observe`; returns `y` unchanged."""
        self.trace.summary = y[:, 0]
        return y

    def head(self, summary: Tensor) -> Tensor:
        """See `ExitBlock.head`."""
        logits: Tensor = self.exit_head(summary)
        return logits
