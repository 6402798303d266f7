"""Prompt tuning: learned tokens P that every block, or the first one, reads together with its input, and the head.

    deep:     [E_l, _] = L_l([E_{l-1}, P_{l-1}])        each block L_l has its own prompts, removed after it
    shallow:  [E_1, Z_1] = L_1([E_0, P]),  [E_l, Z_l] = L_l([E_{l-1}, Z_{l-1}])

Prompts follow the other tokens, have no position embedding, and every token attends to them. In training, elements of
prompts are set to zero at random, for each sample anew.

FedPEFT's code uses the deep form. The prompt tuning of Hugging Face PEFT is another method: its tokens come first,
where text classifiers expect [CLS], and have position embeddings.

Source: Jia et al. 2022 (VPT, arXiv 2203.12119), Eq. 4 to 7; Sun et al. 2022 (FedPEFT, arXiv 2210.01708), prototype
"Prompt", sizes of the authors' code.

Shapes: N samples of all lanes in use, T tokens, P prompts, D features.
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
        num_virtual_tokens: number of prompts per block.
        depth: with `deep` every block has prompts, with `shallow` only the first.
        dropout: probability that an element of a prompt is set to zero in a training step.
    """

    name: Literal["prompt"] = "prompt"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = False  # no layer of the model could hold prompts
    starts_as_base: ClassVar[bool] = False  # the initial prompts are random
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
        for path in paths:
            current, block = layers[path]
            has_prompts = self.depth == "deep" or path == paths[0]
            prompted = Prompted(
                lanes,
                block,
                random_like(weight_OD, shape, draw) if has_prompts else None,
                num_prompts=self.num_virtual_tokens,
                drops=self.depth == "deep" or path == paths[-1],
                dropout=self.dropout,
            )
            replace(backbone.module, current, prompted)
            if has_prompts:
                tensors[f"{current}.prompt"] = TensorSpec(shape, current)
        return specification(backbone, tensors | tune_head(backbone, lanes))

    def merge(self, backbone: Backbone) -> None:
        """Merges the head; the prompts stay in the model, with all lanes."""
        merge_head(backbone)


class Prompted(Wrapper):
    """A block that reads prompts after its tokens.

    Args:
        lanes: shared by all tuning modules of the model.
        base: the block.
        prompt_PD: initial prompts; None for a block that only passes on the prompts of a lower block.
        num_prompts: P, the number of prompts that the block reads.
        drops: whether the prompts are removed from the output.
        dropout: probability that an element of a prompt is set to zero.
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
        """[N, T, D] to [N, T, D]; T includes prompts that come from, or go to, another block.

        Further outputs of the block are passed on. `attention_mask` covers the tokens without prompts, and is extended.
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
    """An attention mask [B, 1, T or 1, T], extended by `num_prompts` tokens that all tokens attend to.

    Prompts attend to the same tokens as the first token does: masks are bidirectional, so the rows of a sample are
    equal.
    """
    if mask is None:
        return None
    attended = True if mask.dtype == torch.bool else 0.0
    mask = torch.cat([mask, mask.new_full((*mask.shape[:-1], num_prompts), attended)], dim=-1)
    if mask.shape[-2] == 1:
        return mask
    return torch.cat([mask, mask[..., :1, :].expand(*mask.shape[:-2], num_prompts, -1)], dim=-2)


def _bound(backbone: Backbone, width: int) -> float:
    """VPT's bound of uniform prompts, sqrt(6 / (fan-in of the patch embedding + D)); without patches sqrt(6 / 2D)."""
    embeddings = backbone.module.get_submodule(backbone.anatomy.embeddings)
    patches = [layer for layer in embeddings.modules() if isinstance(layer, nn.Conv2d)]
    return math.sqrt(6 / ((patches[0].weight[0].numel() if patches else width) + width))
