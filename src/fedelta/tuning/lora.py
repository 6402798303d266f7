"""LoRA: a low-rank pair beside frozen linear and convolutional layers, and the head.

    linear:       y = W x + b + s B (A x),  W as it is or, in GPT-2's Conv1D, the other way round
    convolution:  y = W * x + b + s B (A * x),  A with the kernel, stride and padding of W, B a 1x1
    s = lora_alpha / r, or lora_alpha / sqrt(r)

A starts Kaiming-uniform (a = sqrt 5), B at zero, so that the model starts as the pre-trained one. Fields carry
the names of Hugging Face PEFT, so that an adapter made there can be taken over field by field (inference/adapter.py).

Source: Hu et al. 2022 (LoRA, arXiv 2106.09685), section 4.1; convolutions as in PEFT and the LoRA authors' code.

Shapes: K lanes, A lanes in use, B samples of a lane, N rows of a lane, I in, O out, R rank, M x M the kernel.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn.functional import conv2d

from fedelta.errors import ModelError
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.models.layers import is_linear, is_plain, is_transposed, matrix_shape, oddity
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import merge_head, read_layers, replace, specification, tune_head, untouched
from fedelta.tuning.lanes import Lanes, Wrapper, add_pointwise, lane_parameter, random_like

logger = logging.getLogger("fedelta")

T = TypeVar("T", int, float)


class Lora(Settings):
    """Trains low-rank pairs, and the head.

    Args:
        r: rank.
        lora_alpha: the pair's output is multiplied by lora_alpha / r (or / sqrt r).
        target_modules: "auto" for the query and value projections of every attention and, in a model without any that
            are known, every convolution; "all-linear" for every linear layer of the blocks, "all-conv" for every
            convolution; or a list of roles (q, k, v, o, fc1, fc2) and of module names. A module name matches a full
            path or its last parts, as in PEFT, and with ^ before it the full path alone. A layer that is query and
            value in one plays both roles.
        rank_pattern, alpha_pattern: role or module name to another rank or alpha for the layers it matches.
        use_rslora: divide by sqrt r instead of r (Kalajdzievski 2023).
        train_head: train and send the head too.
    """

    name: Literal["lora"] = "lora"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = True
    r: int = Field(default=8, ge=1)  # PEFT's default
    lora_alpha: float = Field(default=16.0, gt=0)  # 2 r, as in most published recipes
    # Hu et al. 2022, section 4.2: queries and values; PEFT's own defaults are theirs too.
    target_modules: (
        Literal["auto", "all-linear", "all-conv"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    ) = "auto"
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    use_rslora: bool = False
    train_head: bool = True

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        layers, tensors = untouched(backbone.module), {}
        targets = self.targets(backbone)
        _refuse_shared(backbone, targets)
        if odd := _odd({own: layer for own, (_, layer) in layers.items()}):
            first = next(iter(odd))
            logger.warning(
                "tuning method 'lora' leaves %d layers alone, first `%s`: it %s.", len(odd), first, odd[first]
            )
        if self.target_modules == "auto" and (backbone.anatomy.layers or not backbone.anatomy.roles):
            logger.warning(_taken(backbone, targets))
        for own in targets:
            now, layer = layers[own]
            rank = _lookup(self.rank_pattern, own, backbone.anatomy, self.r)
            alpha = self.alpha_of(own, backbone.anatomy)
            scale = alpha / (math.sqrt(rank) if self.use_rslora else rank)
            most = max_rank(layer)
            if rank > most:
                size = " x ".join(map(str, matrix_shape(layer)))
                raise ModelError(
                    f"rank {rank} is above the size of `{own}`, which is {size}.",
                    hint=f"use `tuning.r` of at most {most}.",
                )
            pair = (
                LoraConv(lanes, layer, rank, scale, generator=generator)
                if isinstance(layer, nn.Conv2d)
                else LoraLinear(lanes, layer, rank, scale, generator=generator)
            )
            replace(backbone.module, now, pair)
            a_shape, b_shape = pair_shapes(layer, rank)
            tensors[f"{now}.lora_A"] = TensorSpec(a_shape, now)
            tensors[f"{now}.lora_B"] = TensorSpec(b_shape, now)
        return specification(backbone, tensors | (tune_head(backbone, lanes) if self.train_head else {}))

    def targets(self, backbone: Backbone) -> list[str]:
        """Paths of the layers that get a pair, in the order of the model.

        Raises:
            ModelError: an entry of `target_modules` or of a pattern matches no layer; the message names the nearest.
        """
        candidates = {
            own: layer
            for own, (_, layer) in read_layers(backbone).items()
            if own.partition(".")[0] not in backbone.anatomy.head
        }
        layers = [own for own, layer in candidates.items() if takes_pair(layer)]
        if isinstance(self.target_modules, tuple):
            self._refuse_odd(candidates, backbone.anatomy)
            chosen = _resolve("target_modules", self.target_modules, layers, backbone)
        else:
            chosen = _all_of(self.target_modules, layers, backbone)
        for field in ("rank_pattern", "alpha_pattern"):
            _resolve(field, getattr(self, field), sorted(chosen), backbone)
        return [path for path in layers if path in chosen]

    def _refuse_odd(self, candidates: Mapping[str, nn.Module], anatomy: Anatomy) -> None:
        """Refuses entries that name layers beside which no pair can be folded in, whatever else they name."""
        for own, odd in _odd(candidates).items():
            if any(_matches(own, entry, anatomy) for entry in self.target_modules):
                raise ModelError(
                    f"tuning method 'lora' cannot stand beside `{own}`: it {odd}.",
                    hint="leave it out of `tuning.target_modules`.",
                )

    def alpha_of(self, path: str, anatomy: Anatomy) -> float:
        """lora_alpha of the layer at `path`."""
        return _lookup(self.alpha_pattern, path, anatomy, self.lora_alpha)

    def merge(self, backbone: Backbone) -> None:
        """Adds lane 0's product to each weight: W + scale B A."""
        for path, layer in list(backbone.module.named_modules()):
            if isinstance(layer, LoraLinear | LoraConv):
                replace(backbone.module, path, layer.merged())
        merge_head(backbone)


class LoraLinear(Wrapper):
    """A frozen linear layer and a low-rank pair per lane.

    Args:
        lanes: of the model.
        base: the frozen layer, weight [O, I] or, where it is transposed, [I, O].
        rank: inner size of the pair.
        scale: factor of the pair's output.
        generator: for A.
    """

    def __init__(self, lanes: Lanes, base: nn.Module, rank: int, scale: float, *, generator: Generator) -> None:
        super().__init__(lanes, base)
        self.scale = scale
        self.lora_A, self.lora_B = _pair(lanes, base, rank, generator)

    def forward(self, x: Tensor) -> Tensor:
        """[active * B, ..., I] to [active * B, ..., O]."""
        y: Tensor = self.base(x)
        a_KRI, b_KOR = self.lanes.used(self.lora_A), self.lanes.used(self.lora_B)
        low_KNR = torch.bmm(self.lanes.fold(x), a_KRI.transpose(1, 2))
        y_KNO = torch.baddbmm(self.lanes.fold(y), low_KNR, b_KOR.transpose(1, 2), alpha=self.scale)
        return y_KNO.view(y.shape)

    def merged(self) -> nn.Module:
        """The frozen layer with lane 0's product added to its weight (changed in place)."""
        weight, product_OI = self.base.get_parameter("weight"), (self.lora_B[0] @ self.lora_A[0]).detach()
        weight.data += self.scale * (product_OI.T if is_transposed(self.base) else product_OI)
        return self.base


class LoraConv(Wrapper):
    """A frozen convolution and a low-rank pair of convolutions per lane; arguments as for `LoraLinear`."""

    def __init__(self, lanes: Lanes, base: nn.Conv2d, rank: int, scale: float, *, generator: Generator) -> None:
        super().__init__(lanes, base)
        self.scale = scale
        self.stride, self.padding = base.stride, base.padding
        self.lora_A, self.lora_B = _pair(lanes, base, rank, generator)

    def forward(self, x: Tensor) -> Tensor:
        """[active * B, I, H, W] to [active * B, O, H', W']."""
        b_KOR = self.lora_B.flatten(2)
        return add_pointwise(self.lanes, self.base(x), self._low(x), b_KOR, self.scale)

    def _low(self, x: Tensor) -> Tensor:
        """[active * B, R, H', W']: the lanes side by side as groups of one convolution."""
        a_ARIMM = self.lanes.used(self.lora_A)
        lanes, rank = a_ARIMM.shape[:2]
        if lanes == 1:
            return conv2d(x, a_ARIMM[0], stride=self.stride, padding=self.padding)
        x_BGHW = self.lanes.split(x).transpose(0, 1).flatten(1, 2)
        low = conv2d(x_BGHW, a_ARIMM.flatten(0, 1), stride=self.stride, padding=self.padding, groups=lanes)
        return low.view(-1, lanes, rank, *low.shape[2:]).transpose(0, 1).flatten(0, 1)

    def merged(self) -> nn.Module:
        """The frozen layer with lane 0's product added to its kernel (changed in place)."""
        a_RIMM, b_OR = self.lora_A[0].detach(), self.lora_B[0].detach().flatten(1)
        self.base.get_parameter("weight").data += self.scale * torch.einsum("or,rimn->oimn", b_OR, a_RIMM)
        return self.base


def takes_pair(layer: nn.Module) -> bool:
    """Whether a low-rank pair can stand beside `layer`: linear, or a convolution without groups or dilation."""
    if isinstance(layer, nn.Conv2d):
        fits = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
        return fits and is_plain(layer, nn.Conv2d)
    return is_linear(layer)


def _odd(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Those of `layers` that are linear or convolutional by their class alone, and what is odd about each."""
    kinds = (nn.Linear, nn.Conv2d)
    unknown = {own: layer for own, layer in layers.items() if not is_linear(layer)}
    found = {own: oddity(layer, kind) for own, layer in unknown.items() for kind in kinds if isinstance(layer, kind)}
    return {own: odd for own, odd in found.items() if odd is not None}


def _refuse_shared(backbone: Backbone, targets: Iterable[str]) -> None:
    """Refuses a pair beside one of several layers with one weight: folded in, it would change them all."""
    layers = untouched(backbone.module)
    owners: dict[int, list[str]] = {}
    for own, (_, layer) in layers.items():
        for parameter in layer.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(own)
    for own in targets:
        same = owners[id(layers[own][1].get_parameter("weight"))]
        if len(same) > 1:
            raise ModelError(
                f"`{same[0]}` and `{same[1]}` of {type(backbone.module).__name__} share one weight, so that a pair "
                "beside one of them cannot be folded in.",
                hint="name other layers in `tuning.target_modules`, or use 'head'.",
            )


def pair_shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B beside a linear layer or a convolution."""
    out_features, *inner = matrix_shape(layer)
    return (rank, *inner), (out_features, rank, *(1 for _ in inner[1:]))


def max_rank(layer: nn.Module) -> int:
    """Rank of the weight seen as a matrix [O, everything else]; a larger pair holds nothing more."""
    out_features, *inner = matrix_shape(layer)
    return min(out_features, math.prod(inner))


def _pair(lanes: Lanes, base: nn.Module, rank: int, generator: Generator) -> tuple[nn.Parameter, nn.Parameter]:
    weight = base.get_parameter("weight")
    a_shape, b_shape = pair_shapes(base, rank)
    bound = 1 / math.sqrt(math.prod(a_shape[1:]))  # Kaiming-uniform with a = sqrt 5 over the fan-in
    a = random_like(weight, a_shape, lambda tensor: tensor.uniform_(-bound, bound, generator=generator))
    return lane_parameter(lanes, a), lane_parameter(lanes, weight.new_zeros(b_shape))


def _all_of(kind: Literal["auto", "all-linear", "all-conv"], paths: list[str], backbone: Backbone) -> set[str]:
    """The projections of queries and values, every linear layer of the blocks, or every convolution."""
    anatomy, layers = backbone.anatomy, untouched(backbone.module)
    convolutions = {path for path in paths if isinstance(layers[path][1], nn.Conv2d)}
    if kind == "auto":
        chosen = {path for path in paths if anatomy.plays(path, "q") or anatomy.plays(path, "v")} or convolutions
    elif kind == "all-conv":
        chosen = convolutions
    else:
        linear = {path for path in paths if is_linear(layers[path][1])}
        chosen = {path for path in linear if not anatomy.blocks or anatomy.block_of(path) is not None}
    if chosen:
        return chosen
    if kind == "auto":
        names = ", ".join(sorted({path.rpartition(".")[2] for path in paths})) or "none"
        raise ModelError(
            f"`tuning.target_modules` is 'auto', but {type(backbone.module).__name__} has no attention whose "
            "projections are known, and no convolution that a pair can stand beside.",
            hint=f"roles of this model: {', '.join(anatomy.known_roles) or 'none'}; module names: {names}; "
            '`"all-linear"` takes every linear layer.',
        )
    other = "all-linear" if kind == "all-conv" else "all-conv"
    raise ModelError(
        f"`tuning.target_modules` is {kind!r}, but {type(backbone.module).__name__} has no such layer.",
        hint=f"use {other!r}, or name the layers.",
    )


def _taken(backbone: Backbone, targets: list[str]) -> str:
    """In words, which layers of a family that is not described have a pair, by the ends of their names."""
    numbered = [re.sub(r"\.\d+(?=\.)", ".*", path) for path in targets]
    shown = ", ".join(f"`{path}`" for path in dict.fromkeys(numbered))
    what = "were found by their structure" if backbone.anatomy.layers else "are convolutions, as it has no attention"
    return (
        f"the layers of {type(backbone.module).__name__} are not described in fedelta: the {len(targets)} with a "
        f"low-rank pair {what}: {shown}. Name others in `tuning.target_modules`."
    )


def _matches(path: str, entry: str, anatomy: Anatomy) -> bool:
    """Whether `entry` names the layer at `path`: its role, its full path (alone with ^), or the last parts of it."""
    if entry.startswith("^"):
        return path == entry[1:]
    return anatomy.plays(path, entry) if entry in anatomy.known_roles else f".{path}".endswith(f".{entry}")


def _lookup(pattern: Mapping[str, T], path: str, anatomy: Anatomy, default: T) -> T:
    return next((value for entry, value in pattern.items() if _matches(path, entry, anatomy)), default)


def _resolve(field: str, entries: Iterable[str], layers: list[str], backbone: Backbone) -> set[str]:
    """Those of `layers` that `entries` name; an entry that names none is an error with the nearest that does."""
    anatomy, chosen = backbone.anatomy, set()
    for entry in entries:
        matches = [path for path in layers if _matches(path, entry, anatomy)]
        if not matches:
            names = sorted({path.rpartition(".")[2] for path in layers})
            nearest = get_close_matches(entry, layers if "." in entry else [*anatomy.known_roles, *names], n=1)
            kind = "linear or convolutional" if field == "target_modules" else "tuned"
            raise ModelError(
                f"`tuning.{field}` entry {entry!r} matches no {kind} layer of {type(backbone.module).__name__}"
                + (f"; did you mean {nearest[0]!r}?" if nearest else "."),
                hint=f"roles of this model: {', '.join(anatomy.known_roles) or 'none'}; module names: "
                + ", ".join(names)
                + ("." if anatomy.known_roles else '; `"all-conv"` takes every convolution.'),
            )
        chosen.update(matches)
    return chosen
