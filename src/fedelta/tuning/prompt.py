"""Prompt tuning: learned tokens that every block, or the first one, reads beside its input, and the head.

    deep:     [x_l, _] = block_l([x_{l-1}, p_l])        in every block new prompts, dropped behind it
    shallow:  [x_1, z_1] = block_1([x_0, p]), [x_l, z_l] = block_l([x_{l-1}, z_{l-1}])

Prompts stand behind the other tokens, get no position embedding and are always attended to. In training a prompt's
elements are dropped at random per sample.

FedPEFT's code takes the deep form. Stock PEFT's prompt tuning is another method: its tokens stand in front, where
text classifiers look for [CLS], and get position embeddings.

Source: Jia et al. 2022 (VPT, arXiv 2203.12119), Eq. 4 to 7; Sun et al. 2022 (FedPEFT, arXiv 2210.01708), prototype
"Prompt", sizes of the authors' code.

Shapes: A lanes in use, B samples of a lane, T tokens, P prompts, D features.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import (
    block_paths,
    merge_head,
    misfit,
    replace,
    role_paths,
    specification,
    tune_head,
    untouched,
)
from fedelta.tuning.lanes import Lanes, Wrapper, lane_parameter, random_like


class Prompt(Settings):
    """Trains prompts, and the head.

    Args:
        num_virtual_tokens: prompts of a block.
        depth: `deep` gives every block prompts of its own, `shallow` only the first.
        dropout: probability with which an element of a prompt is zero in a training step.
    """

    name: Literal["prompt"] = "prompt"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = False  # a model has no place for prompts of its own
    starts_as_base: ClassVar[bool] = False  # prompts are drawn
    num_virtual_tokens: int = Field(default=10, ge=1)  # FedPEFT
    depth: Literal["deep", "shallow"] = "deep"  # FedPEFT
    dropout: float = Field(default=0.1, ge=0, lt=1)  # FedPEFT

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        paths = block_paths(backbone)
        if not paths:
            raise misfit(self.name, backbone, "it has no blocks of tokens that are known")
        if backbone.anatomy.no_prompts:
            raise misfit(self.name, backbone, backbone.anatomy.no_prompts)
        layers = untouched(backbone.module)
        weight_OD = layers[role_paths(backbone, "q")[0]][1].get_parameter("weight")
        bound = _bound(backbone, weight_OD.shape[1])
        shape = (self.num_virtual_tokens, weight_OD.shape[1])
        draw = partial(nn.init.uniform_, a=-bound, b=bound, generator=generator)
        tensors: dict[str, TensorSpec] = {}
        for own in paths:
            now, block = layers[own]
            has_prompts = self.depth == "deep" or own == paths[0]
            prompted = Prompted(
                lanes,
                block,
                random_like(weight_OD, shape, draw) if has_prompts else None,
                num_prompts=self.num_virtual_tokens,
                drops=self.depth == "deep" or own == paths[-1],
                dropout=self.dropout,
            )
            replace(backbone.module, now, prompted)
            if has_prompts:
                tensors[f"{now}.prompt"] = TensorSpec(shape, now)
        return specification(backbone, tensors | tune_head(backbone, lanes))

    def merge(self, backbone: Backbone) -> None:
        """Folds the head; the prompts stay, with all their lanes."""
        merge_head(backbone)


class Prompted(Wrapper):
    """A block that reads prompts behind its tokens.

    Args:
        lanes: of the model.
        base: the block.
        prompt_PD: where its prompts start; None for a block that only passes on those of a lower one.
        num_prompts: prompts in its input.
        drops: whether the prompts end here.
        dropout: see `Prompt`.
    """

    def __init__(
        self, lanes: Lanes, base: nn.Module, prompt_PD: Tensor | None, *, num_prompts: int, drops: bool, dropout: float
    ) -> None:
        super().__init__(lanes, base)
        self.prompt = None if prompt_PD is None else lane_parameter(lanes, prompt_PD)
        self.num_prompts = num_prompts
        self.drops = drops
        self.dropout = dropout

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, *args: object, **kwargs: object
    ) -> Tensor | tuple[Tensor, ...]:
        """[active * B, T, D] to [active * B, T, D], with P more tokens on either side where prompts pass through.

        A block that gives more than its tokens still does.
        `attention_mask` covers T tokens, those that came with the input; it is widened to the prompts.
        """
        if self.prompt is not None:
            prompts = self.lanes.dropout(self.lanes.repeat(self.prompt, x), self.dropout)
            x = torch.cat([x, prompts.to(x.dtype)], dim=1)
        y: Tensor | tuple[Tensor, ...] = self.base(x, _widen(attention_mask, self.num_prompts), *args, **kwargs)
        if isinstance(y, tuple):
            return (self._passed(y[0]), *y[1:])
        return self._passed(y)

    def _passed(self, y: Tensor) -> Tensor:
        return y[:, : -self.num_prompts] if self.drops else y


def _widen(mask: Tensor | None, num_prompts: int) -> Tensor | None:
    """An attention mask [B, 1, T or 1, T] that lets every token see `num_prompts` more, and lets these see the others.

    True and 0.0 are what is attended to; masks are bidirectional, so that all rows of a sample are equal.
    """
    if mask is None:
        return None
    seen = True if mask.dtype == torch.bool else 0.0
    mask = torch.cat([mask, mask.new_full((*mask.shape[:-1], num_prompts), seen)], dim=-1)
    if mask.shape[-2] == 1:
        return mask
    return torch.cat([mask, mask[..., :1, :].expand(*mask.shape[:-2], num_prompts, -1)], dim=-2)


def _bound(backbone: Backbone, width: int) -> float:
    """VPT's bound of the uniform start, sqrt(6 / (fan-in of the patch embedding + D)); without patches sqrt(6 / 2D)."""
    embeddings = backbone.module.get_submodule(backbone.anatomy.embeddings)
    patches = [layer for layer in embeddings.modules() if isinstance(layer, nn.Conv2d)]
    return math.sqrt(6 / ((patches[0].weight[0].numel() if patches else width) + width))
