"""A tuning method, a strategy and a task of a stranger, in one file outside of the package: what `--plugin` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from fedelta.aggregation.base import Reads
from fedelta.aggregation.means import Weighted
from fedelta.models.hub import Backbone
from fedelta.params import Params, ParamSpec, TensorSpec, add
from fedelta.settings import Settings
from fedelta.strategies.base import CombinedUpdates, RoundPlan, State, uniform
from fedelta.strategies.cohort import ChosenMean, Rounds
from fedelta.tasks.base import Sums
from fedelta.tasks.classification import Classification
from fedelta.tuning.base import merge_head, misfit, replace, role_paths, specification, tune_head, untouched
from fedelta.tuning.lanes import Lanes, Wrapper, lane_parameter


class Scaled(Wrapper):
    """A frozen linear layer whose input is scaled per lane and feature."""

    def __init__(self, lanes: Lanes, base: nn.Module, start: float) -> None:
        super().__init__(lanes, base)
        self.scale = lane_parameter(lanes, torch.full_like(base.get_parameter("weight")[0], start))

    def forward(self, x: Tensor) -> Tensor:
        """[active * B, T, I] to [active * B, T, O]."""
        scaled: Tensor = self.base(x * self.lanes.repeat(self.scale, x).unsqueeze(1))
        return scaled


class Scale(Settings):
    """Trains one factor for every feature inside of every MLP, and the head ((IA)^3, arXiv 2205.05638)."""

    name: Literal["scale"] = "scale"
    start: float = Field(default=1.0, gt=0)
    blocks: tuple[int, ...] = ()  # strict, as a stranger would write it
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = True

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        layers, tensors = untouched(backbone.module), {}
        for path in role_paths(backbone, "fc2"):
            now, layer = layers[path]
            replace(backbone.module, now, Scaled(lanes, layer, self.start))
            tensors[f"{now}.scale"] = TensorSpec((layer.in_features,), now)
        if not tensors:
            raise misfit(self.name, backbone, "it has no blocks with an MLP that are known")
        return specification(backbone, tensors | tune_head(backbone, lanes))

    def merge(self, backbone: Backbone) -> None:
        """Multiplies the columns of each weight by lane 0's factors."""
        for path, layer in list(backbone.module.named_modules()):
            if isinstance(layer, Scaled):
                layer.base.get_parameter("weight").data *= layer.scale[0].detach()
                replace(backbone.module, path, layer.base)
        merge_head(backbone)


class Damped(Rounds):
    """FedAvg with a server step that shrinks from round to round."""

    name: Literal["damped"] = "damped"
    mean: ChosenMean = Weighted()
    decay: float = Field(default=0.5, gt=0, le=1)
    reads: ClassVar[Reads] = "sum"

    def init(self, params: Params, spec: ParamSpec) -> State:
        """The factor of the next step."""
        return {"factor": torch.ones(1, dtype=torch.float64)}

    def plan(
        self, state: State, round: int, client_ids: Sequence[int], spec: ParamSpec, generator: Generator
    ) -> RoundPlan:
        """A uniform cohort; everything travels."""
        return uniform(self.clients_per_round, round, client_ids, spec, generator)

    def update(
        self, state: State, params: Params, plan: RoundPlan, combined: CombinedUpdates, spec: ParamSpec
    ) -> tuple[Params, State]:
        """A step by the factor, which shrinks."""
        return add(params, combined.mean, float(state["factor"])), {"factor": state["factor"] * self.decay}


class Smoothed(Classification):
    """Classification with smoothed labels."""

    name: Literal["smoothed"] = "smoothed"
    smoothing: float = Field(default=0.1, ge=0, lt=1)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy with some of the weight on every class."""
        return nn.functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=self.smoothing)

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """Correct answers, and the loss that is minimised in place of the plain cross entropy."""
        loss = float(self.losses(outputs, targets).double().sum())
        return Sums(super().sums(outputs, targets).totals | {self.loss.name: (loss, len(targets))})
