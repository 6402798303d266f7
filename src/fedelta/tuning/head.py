"""Head tuning: only the model's head is trained; the backbone is a fixed feature extractor.

Source: Sun et al. 2022 (FedPEFT, arXiv 2210.01708), prototype "Head-tuning".
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Generator

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec
from fedelta.settings import Settings
from fedelta.tuning.base import merge_head, specification, tune_head
from fedelta.tuning.lanes import Lanes


class Head(Settings):
    """Trains the head only."""

    name: Literal["head"] = "head"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = True

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        if backbone.vocabulary is not None:
            raise ModelError(
                f"tuning method 'head' does not fit {type(backbone.module).__name__}: a language model has no head but "
                "its output embedding, which is not tuned alone.",
                hint="use 'lora' or 'adapter'.",
            )
        tensors = tune_head(backbone, lanes)
        if not tensors:
            reason, hint = (
                ("exits have replaced the model's head.", "leave out 'head'.")
                if backbone.anatomy.head
                else ("the model has no known head.", "use 'lora' or 'full'.")
            )
            raise ModelError(f"tuning method 'head' has nothing to train: {reason}", hint=hint)
        return specification(backbone, tensors)

    def merge(self, backbone: Backbone) -> None:
        """Replaces the lanes of the head by plain layers."""
        merge_head(backbone)
