"""LoRA: a low-rank pair beside frozen linear layers, and the head.

    y = W x + b + (lora_alpha / r) * B (A x)

A starts Kaiming-uniform (a = sqrt 5), B at zero, so that the model starts as the pre-trained one. Fields carry
the names of Hugging Face PEFT, so that an adapter made there can be taken over field by field (inference/adapter.py).

Source: Hu et al. 2022 (LoRA, arXiv 2106.09685), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from fedelta.errors import ModelError
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import freeze, merge_head, replace, tune_head
from fedelta.tuning.lanes import Lanes, lane_parameter, random_like

T = TypeVar("T", int, float)

# Shapes: K lanes, N rows of one lane, I in features, O out features, R rank.


class Lora(Settings):
    """Trains low-rank pairs, and the head.

    Args:
        r: rank.
        lora_alpha: the pair's output is multiplied by lora_alpha / r (or / sqrt r).
        target_modules: "all-linear" for every linear layer of the blocks, or a list of roles (q, k, v, o, fc1,
            fc2) and of module names; a module name matches a full path or its last parts, as in PEFT.
        rank_pattern, alpha_pattern: role or module name to another rank or alpha for the layers it matches.
        use_rslora: divide by sqrt r instead of r (Kalajdzievski 2023).
        train_head: train and send the head too.
    """

    name: Literal["lora"] = "lora"
    r: int = Field(default=8, ge=1)  # PEFT's default
    lora_alpha: float = Field(default=16.0, gt=0)  # 2 r, as in most published recipes
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = (
        "q",
        "v",
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    use_rslora: bool = False
    train_head: bool = True

    @property
    def max_lanes(self) -> None:
        """No bound."""

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        module, tensors = backbone.module, {}
        freeze(module)
        for path in self.targets(backbone):
            layer = module.get_submodule(path)
            rank = _lookup(self.rank_pattern, path, backbone.anatomy, self.r)
            alpha = self.alpha_of(path, backbone.anatomy)
            scale = alpha / (math.sqrt(rank) if self.use_rslora else rank)
            out_features, in_features = layer.get_parameter("weight").shape
            if rank > min(out_features, in_features):
                raise ModelError(
                    f"rank {rank} is above the size of `{path}`, which is {out_features} x {in_features}.",
                    hint=f"use `tuning.r` of at most {min(out_features, in_features)}.",
                )
            replace(module, path, LoraLinear(lanes, layer, rank, scale, generator=generator))
            tensors[f"{path}.lora_A"] = TensorSpec((rank, in_features), path)
            tensors[f"{path}.lora_B"] = TensorSpec((out_features, rank), path)
        return ParamSpec(tensors | (tune_head(backbone, lanes) if self.train_head else {}))

    def targets(self, backbone: Backbone) -> list[str]:
        """Paths of the layers that get a pair, in the order of the model.

        Raises:
            ModelError: an entry of `target_modules` or of a pattern matches no layer; the message names the nearest.
        """
        linear = [
            path
            for path, layer in backbone.module.named_modules()
            if isinstance(layer, nn.Linear) and path.partition(".")[0] not in backbone.anatomy.head
        ]
        if self.target_modules == "all-linear":
            chosen = {path for path in linear if path.startswith(backbone.anatomy.blocks)}
        else:
            chosen = _resolve("target_modules", self.target_modules, linear, backbone)
        for field in ("rank_pattern", "alpha_pattern"):
            _resolve(field, getattr(self, field), sorted(chosen), backbone)
        return [path for path in linear if path in chosen]

    def alpha_of(self, path: str, anatomy: Anatomy) -> float:
        """lora_alpha of the layer at `path`."""
        return _lookup(self.alpha_pattern, path, anatomy, self.lora_alpha)

    def merge(self, backbone: Backbone) -> None:
        """Adds lane 0's product to each weight: W + scale B A."""
        for path, layer in list(backbone.module.named_modules()):
            if isinstance(layer, LoraLinear):
                replace(backbone.module, path, layer.merged())
        merge_head(backbone)


class LoraLinear(nn.Module):
    """A frozen linear layer and a low-rank pair per lane.

    Args:
        lanes: of the model.
        base: the frozen layer, weight [O, I].
        rank: inner size of the pair.
        scale: factor of the pair's output.
        generator: for A.
    """

    def __init__(self, lanes: Lanes, base: nn.Module, rank: int, scale: float, *, generator: Generator) -> None:
        super().__init__()
        self.lanes = lanes
        self.base = base
        self.scale = scale
        weight_OI = base.get_parameter("weight")
        bound = 1 / math.sqrt(weight_OI.shape[1])  # Kaiming-uniform with a = sqrt 5 over fan-in I

        def uniform(tensor: Tensor) -> Tensor:
            return tensor.uniform_(-bound, bound, generator=generator)

        self.lora_A = lane_parameter(lanes, random_like(weight_OI, (rank, weight_OI.shape[1]), uniform))
        self.lora_B = lane_parameter(lanes, weight_OI.new_zeros(weight_OI.shape[0], rank))

    @property
    def weight(self) -> Tensor:
        """The weight of the frozen layer: models ask a layer for its dtype through it."""
        return self.base.get_parameter("weight")

    def forward(self, x: Tensor) -> Tensor:
        """[active * B, ..., I] to [active * B, ..., O]."""
        y: Tensor = self.base(x)
        a_KRI, b_KOR = self.lanes.used(self.lora_A), self.lanes.used(self.lora_B)
        low_KNR = torch.bmm(self.lanes.fold(x), a_KRI.transpose(1, 2))
        y_KNO = torch.baddbmm(self.lanes.fold(y), low_KNR, b_KOR.transpose(1, 2), alpha=self.scale)
        return y_KNO.view(y.shape)

    def merged(self) -> nn.Module:
        """The frozen layer with lane 0's product added to its weight (changed in place)."""
        weight_OI = self.base.get_parameter("weight")
        weight_OI.data += self.scale * (self.lora_B[0] @ self.lora_A[0]).detach()
        return self.base


def _plays(path: str, anatomy: Anatomy, role: str) -> bool:
    """Whether `path` is the layer of `role` in one of the blocks, by its whole path inside the block.

    Its last parts are not enough: BERT's `fc2` is `output.dense`, and its `o` is `attention.output.dense`.
    """
    inside = path.removeprefix(f"{anatomy.blocks}.")
    return inside != path and inside.partition(".")[2] == anatomy.roles[role]


def _matches(path: str, entry: str, anatomy: Anatomy) -> bool:
    """Whether `entry` names the layer at `path`: its role, its full path, or the last parts of it."""
    return _plays(path, anatomy, entry) if entry in anatomy.roles else f".{path}".endswith(f".{entry}")


def _lookup(pattern: Mapping[str, T], path: str, anatomy: Anatomy, default: T) -> T:
    return next((value for entry, value in pattern.items() if _matches(path, entry, anatomy)), default)


def _resolve(field: str, entries: Iterable[str], layers: list[str], backbone: Backbone) -> set[str]:
    """Those of `layers` that `entries` name; an entry that names none is an error with the nearest that does."""
    anatomy, chosen = backbone.anatomy, set()
    for entry in entries:
        matches = [path for path in layers if _matches(path, entry, anatomy)]
        if not matches:
            names = sorted({path.rpartition(".")[2] for path in layers})
            nearest = get_close_matches(entry, [*anatomy.roles, *names], n=1)
            raise ModelError(
                f"`tuning.{field}` entry {entry!r} matches no {'linear' if field == 'target_modules' else 'tuned'} "
                f"layer of {type(backbone.module).__name__}" + (f"; did you mean {nearest[0]!r}?" if nearest else "."),
                hint=f"roles of this model: {', '.join(anatomy.roles) or 'none'}; module names: {', '.join(names)}.",
            )
        chosen.update(matches)
    return chosen
