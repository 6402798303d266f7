"""LoRA: a low-rank pair of tensors beside each chosen frozen linear or convolutional layer, and the head.

    linear:       h = W0 x + b + s B (A x)
    convolution:  h = W0 * x + b + s B (A * x),    A has the kernel size, stride and padding of W0, B is 1x1
    s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`

The initial A is Kaiming-uniform (a = sqrt 5) and the initial B zero, so that training starts from the pre-trained
model. In GPT-2's Conv1D W0 is stored transposed. Fields have the names of Hugging Face PEFT, so that an adapter made
there can be loaded field by field (inference/adapter.py).

Source: Hu et al. 2022 (LoRA, arXiv 2106.09685), section 4.1; convolutions as in PEFT and the LoRA authors' code.

Shapes: A lanes in use, N samples of all of them, B of one lane, I in, O out, R rank, M x M the kernel.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn.functional import conv2d

from fedelta.errors import ModelError
from fedelta.models.anatomy import Anatomy
from fedelta.models.hub import Backbone
from fedelta.models.layers import is_linear, is_plain, is_quantised, is_transposed, matrix_shape
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Context, Settings
from fedelta.tuning.base import effective_layers, merge_head, replace, specification, tune_head, untouched
from fedelta.tuning.lanes import Lanes, Wrapper, add_pointwise, joined, lane_parameter, random_like
from fedelta.tuning.low_rank import low_rank_linear
from fedelta.tuning.ranks import RankByClient
from fedelta.tuning.targets import (
    describe_choice,
    layers_of_kind,
    lookup,
    matches,
    matching_layers,
    refuse_shared_weights,
    unreached,
    unusual_layers,
)

logger = logging.getLogger("fedelta")


class Lora(Settings):
    """Trains low-rank pairs, and the head.

    Args:
        r: rank of every pair.
        lora_alpha: the output of a pair is multiplied by lora_alpha / r (or / sqrt r).
        target_modules: "auto" for the query and value projections of every attention or, in a model without known
            attention, for every convolution; "all-linear" for every linear layer of the blocks; "all-conv" for every
            convolution; or a list of roles (q, k, v, o, fc1, fc2) and module names. As in PEFT, a module name matches
            the last parts of a path; with ^ in front it matches only the whole path. A layer that computes queries and
            values together has both roles.
        rank_pattern: role or module name to the rank of the layers that it matches.
        alpha_pattern: role or module name to the alpha of the layers that it matches.
        use_rslora: divide by sqrt r instead of r (Kalajdzievski 2023).
        rank_by_client: gives clients different ranks; None: every client has the rank of the server.
        train_head: train and send the head too; by default if the model has one, which a language model has not.
    """

    name: Literal["lora"] = "lora"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = True
    r: int = Field(default=8, ge=1)  # PEFT's default
    lora_alpha: float = Field(default=16.0, gt=0)  # 2 r, as in most published recipes
    # Hu et al. 2022, section 4.2: queries and values, which are PEFT's defaults too.
    target_modules: (
        Literal["auto", "all-linear", "all-conv"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    ) = "auto"
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    use_rslora: bool = False
    rank_by_client: RankByClient | None = None
    train_head: bool | None = None

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        self._refuse_embedding(backbone)
        layers, tensors = untouched(backbone.module), {}
        targets = self.targets(backbone)
        refuse_shared_weights(backbone, targets)
        self._warn(backbone, targets)
        for path in targets:
            current, layer = layers[path]
            rank = lookup(self.rank_pattern, path, backbone.anatomy, self.r)
            _check_rank(rank, path, layer)
            scale = self.alpha_of(path, backbone.anatomy) / (math.sqrt(rank) if self.use_rslora else rank)
            pair = (
                LoraConv(lanes, layer, rank, scale, generator=generator)
                if isinstance(layer, nn.Conv2d)
                else LoraLinear(lanes, layer, rank, scale, generator=generator)
            )
            replace(backbone.module, current, pair)
            a_shape, b_shape = pair_shapes(layer, rank)
            tensors[f"{current}.lora_A"] = TensorSpec(a_shape, current)
            tensors[f"{current}.lora_B"] = TensorSpec(b_shape, current)
        return specification(backbone, tensors | ({} if self.train_head is False else tune_head(backbone, lanes)))

    def problems(self, context: Context) -> list[str]:
        """Reports what clients of different rank cannot be combined with."""
        if self.rank_by_client is None:
            return []
        higher = [
            f"`tuning.rank_pattern.{entry}` is {rank}" for entry, rank in self.rank_pattern.items() if rank > self.r
        ]
        problems = [
            f"{text}, but `tuning.r` is {self.r}, the largest rank of a client with `tuning.rank_by_client`: no client "
            f"would train the other rows; set `tuning.r` to the largest rank"
            for text in higher
        ]
        return problems + _rank_problems(self.rank_by_client, context)

    def targets(self, backbone: Backbone) -> list[str]:
        """Original paths of the layers that get a pair, in the order of the model.

        Raises:
            ModelError: an entry of `target_modules` or of a pattern matches no layer; the message names the nearest.
        """
        # Of a language model also the output embedding, which often is the input embedding too.
        words = None if backbone.vocabulary is None else backbone.vocabulary.path
        candidates = {
            path: layer
            for path, (_, layer) in effective_layers(backbone).items()
            if not backbone.anatomy.in_head(path) and path != words
        }
        paths = [path for path, layer in candidates.items() if takes_pair(layer)]
        if isinstance(self.target_modules, tuple):
            self._refuse_unusual(candidates, backbone.anatomy)
            chosen = matching_layers("target_modules", self.target_modules, paths, backbone)
        else:
            chosen = layers_of_kind(self.target_modules, paths, backbone)
        for field in ("rank_pattern", "alpha_pattern"):
            matching_layers(field, getattr(self, field), sorted(chosen), backbone)
        return [path for path in paths if path in chosen]

    def _refuse_embedding(self, backbone: Backbone) -> None:
        """Refuses to train the output embedding of a language model, if that was meant by the head."""
        if self.train_head and backbone.vocabulary is not None:
            raise ModelError(
                f"`tuning.train_head` is true, but {type(backbone.module).__name__} is a language model: it has no "
                "head but its output embedding, which is not tuned.",
                hint="leave it out.",
            )

    def _refuse_unusual(self, candidates: Mapping[str, nn.Module], anatomy: Anatomy) -> None:
        """Refuses an entry of `target_modules` that names a layer into which a pair cannot be folded."""
        for path, problem in unusual_layers(candidates).items():
            if any(matches(path, entry, anatomy) for entry in self.target_modules):
                raise ModelError(
                    f"tuning method 'lora' cannot add a pair to `{path}`: it {problem}.",
                    hint="leave it out of `tuning.target_modules`.",
                )

    def _warn(self, backbone: Backbone, targets: list[str]) -> None:
        """Logs which layers are left out, and which were chosen in a model that fedelta does not know."""
        if unusual := unusual_layers({path: layer for path, (_, layer) in untouched(backbone.module).items()}):
            path, problem = next(iter(unusual.items()))
            more = f" It leaves out {len(unusual) - 1} more for such reasons." if len(unusual) > 1 else ""
            logger.warning("tuning method 'lora' leaves out `%s`: the layer %s.%s", path, problem, more)
        if self.target_modules == "auto" and (backbone.anatomy.layers or not backbone.anatomy.roles):
            logger.warning(describe_choice(backbone, targets))
        if self.target_modules == "all-linear" and (note := unreached(backbone, targets)):
            logger.warning(note)

    def alpha_of(self, path: str, anatomy: Anatomy) -> float:
        """lora_alpha of the layer at the original path `path`."""
        return lookup(self.alpha_pattern, path, anatomy, self.lora_alpha)

    def merge(self, backbone: Backbone) -> None:
        """Adds the product of lane 0 to each weight: W0 + s B A."""
        for path, layer in list(backbone.module.named_modules()):
            if isinstance(layer, LoraLinear | LoraConv):
                replace(backbone.module, path, layer.merged())
        merge_head(backbone)


class LoraLinear(Wrapper):
    """A frozen linear layer with a low-rank pair per lane.

    Args:
        lanes: shared by all tuning modules of the model.
        base: the frozen layer, with weight [O, I] or, if it is transposed, [I, O].
        rank: R, inner size of the pair.
        scale: s, factor of the pair's output.
        generator: draws A.
    """

    def __init__(self, lanes: Lanes, base: nn.Module, rank: int, scale: float, *, generator: Generator) -> None:
        super().__init__(lanes, base)
        self.scale = scale
        self.lora_A, self.lora_B = _pair(lanes, base, rank, generator)
        self.carried_A: nn.Parameter | None = None
        self.carried_B: nn.Parameter | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, ..., I] to [N, ..., O]."""
        # Another method has wrapped the layer; or an answer is wanted, which shall be the same for the same row.
        if not is_linear(self.base) or is_quantised(self.base) or not torch.is_grad_enabled():
            a, b = (factor.to(x.dtype) for factor in factors(self))
            return self.lanes.add_linear(self.base(x), self.lanes.linear(x, a), b, self.scale)
        parameters = dict(self.base.named_parameters(recurse=False))
        weight = parameters["weight"]
        frozen = weight.T if is_transposed(self.base) else weight, parameters.get("bias")
        a, b = factors(self)
        pair = self.lanes.used(a), self.lanes.used(b)
        return low_rank_linear(x, frozen, pair, scale=self.scale, entries=self.lanes.entries(x))

    def merged(self) -> nn.Module:
        """The frozen layer, with the product of lane 0 added to its weight in place; `self` if that is quantised."""
        if is_quantised(self.base):
            return self  # rounding to a few bits would take away as much as the pair has learned
        a, b = factors(self)
        weight, product_OI = self.base.get_parameter("weight"), (b[0] @ a[0]).detach()
        weight.data += self.scale * (product_OI.T if is_transposed(self.base) else product_OI)
        return self.base


class LoraConv(Wrapper):
    """A frozen convolution with a low-rank pair of convolutions per lane; arguments as for `LoraLinear`."""

    def __init__(self, lanes: Lanes, base: nn.Conv2d, rank: int, scale: float, *, generator: Generator) -> None:
        super().__init__(lanes, base)
        self.scale = scale
        self.stride, self.padding = base.stride, base.padding
        self.lora_A, self.lora_B = _pair(lanes, base, rank, generator)
        self.carried_A: nn.Parameter | None = None
        self.carried_B: nn.Parameter | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] to [N, O, H', W']."""
        a_KRIMM, b_KOR11 = factors(self)
        return add_pointwise(self.lanes, self.base(x), self._low(x, a_KRIMM), b_KOR11.flatten(2), self.scale)

    def _low(self, x: Tensor, a_KRIMM: Tensor) -> Tensor:
        """A * x, [N, R, H', W']; if all lanes have as many samples, they are the groups of one convolution."""
        parts, a_ARIMM = self.lanes.split(x), self.lanes.used(a_KRIMM)
        lanes, rank = a_ARIMM.shape[:2]
        if lanes == 1 or not self.lanes.are_even:
            pairs = zip(parts, a_ARIMM, strict=True)
            return joined([conv2d(part, a, stride=self.stride, padding=self.padding) for part, a in pairs])
        x_BGHW = x.unflatten(0, (lanes, -1)).transpose(0, 1).flatten(1, 2)
        low = conv2d(x_BGHW, a_ARIMM.flatten(0, 1), stride=self.stride, padding=self.padding, groups=lanes)
        return low.view(-1, lanes, rank, *low.shape[2:]).transpose(0, 1).flatten(0, 1)

    def merged(self) -> nn.Module:
        """The frozen layer, with the product of lane 0 added to its kernel in place."""
        a_RIMM, b_OR = (factor[0].detach() for factor in factors(self))
        b_OR = b_OR.flatten(1)
        self.base.get_parameter("weight").data += self.scale * torch.einsum("or,rimn->oimn", b_OR, a_RIMM)
        return self.base


def factors(layer: LoraLinear | LoraConv) -> tuple[Tensor, Tensor]:
    """A and B of every lane, followed by what is carried beside the pair, if there is space for it (`carry`)."""
    c, d = layer.carried_A, layer.carried_B
    # Without rows of zeros, which would take time and, as they change the order of sums, the last bits.
    places = torch.zeros(0) if c is None else c.detach().flatten(2).any(2).any(0).nonzero()
    rows = int(places.max()) + 1 if places.numel() else 0
    if c is None or d is None or not rows:
        return layer.lora_A, layer.lora_B
    return torch.cat([layer.lora_A, c[:, :rows]], dim=1), torch.cat([layer.lora_B, d[:, :, :rows]], dim=2)


def carry(module: nn.Module) -> None:
    """Makes space, beside every pair in `module`, for whatever the frozen layer may change by (`carried_shapes`)."""
    for layer in module.modules():
        if isinstance(layer, LoraLinear | LoraConv):
            pair = layer.lora_A, layer.lora_B
            shapes = carried_shapes(*(tuple(factor.shape[1:]) for factor in pair))
            layer.carried_A, layer.carried_B = (
                lane_parameter(layer.lanes, factor.new_zeros(shape)) for factor, shape in zip(pair, shapes, strict=True)
            )


def carried_shapes(a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of a pair of full rank for the layer with a pair of these shapes, without the lane axis.

    >>> carried_shapes((8, 64), (32, 8))
    ((32, 64), (32, 32))
    """
    rank = min(b_shape[0], math.prod(a_shape[1:]))
    return (rank, *a_shape[1:]), (b_shape[0], rank, *b_shape[2:])


def takes_pair(layer: nn.Module) -> bool:
    """Whether `layer` can have a low-rank pair: it is linear, or a convolution without groups and dilation."""
    if isinstance(layer, nn.Conv2d):
        fits = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
        return fits and is_plain(layer, nn.Conv2d)
    return is_linear(layer)


def pair_shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of A and B for a linear layer or a convolution, without the lane axis."""
    out_features, *inner = matrix_shape(layer)
    return (rank, *inner), (out_features, rank, *(1 for _ in inner[1:]))


def max_rank(layer: nn.Module) -> int:
    """The largest useful rank: that of the weight as a matrix [O, all other axes]."""
    out_features, *inner = matrix_shape(layer)
    return min(out_features, math.prod(inner))


def _rank_problems(ranks: RankByClient, context: Context) -> list[str]:
    problems, given = [], "`tuning.rank_by_client` is there"
    strategy, mean, unit = (context.get(key) for key in ("strategy.name", "strategy.mean.name", "privacy.unit"))
    if strategy in ("scaffold", "fednova"):
        problems.append(
            f"{given}, but `strategy.name` is {strategy!r}, which compares the changes of clients scalar by "
            "scalar; choose another strategy, such as 'fedavg'"
        )
    if mean not in (None, "weighted", "uniform", "clipped", "normalised", "uniform-deltas"):
        problems.append(
            f"{given}, but `strategy.mean.name` is {mean!r}, which would take the rows that clients lack for "
            "outliers; choose 'weighted' or 'uniform'"
        )
    if unit not in (None, "none"):
        problems.append(
            f"{given}, but `privacy.unit` is {unit!r}: noise would also be added to the rows that a client lacks; "
            "give all clients one rank"
        )
    if ranks.assignment == "tier" and ranks.file is None and context.get("exits.has_tiers") is False:
        problems.append("`tuning.rank_by_client.assignment` is 'tier', but `[exits]` has no tiers")
    return problems


def _check_rank(rank: int, path: str, layer: nn.Module) -> None:
    if rank > max_rank(layer):
        size = " x ".join(map(str, matrix_shape(layer)))
        raise ModelError(
            f"rank {rank} is too large for `{path}`, whose size is {size}.",
            hint=f"use `tuning.r` of at most {max_rank(layer)}.",
        )


def _pair(lanes: Lanes, base: nn.Module, rank: int, generator: Generator) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B with their initial values, equal in all lanes."""
    frozen = base.get_parameter("weight")
    # In float32 if the frozen weight has less, or is quantised.
    dtype = torch.promote_types(frozen.dtype, torch.float32) if frozen.dtype.is_floating_point else torch.float32
    weight = torch.empty(0, device=frozen.device, dtype=dtype)
    a_shape, b_shape = pair_shapes(base, rank)
    bound = 1 / math.sqrt(math.prod(a_shape[1:]))  # Kaiming-uniform with a = sqrt 5 over the fan-in
    a = random_like(weight, a_shape, lambda tensor: tensor.uniform_(-bound, bound, generator=generator))
    return lane_parameter(lanes, a), lane_parameter(lanes, weight.new_zeros(b_shape))
