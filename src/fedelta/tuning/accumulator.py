"""Accumulator: one shared transformer layer over the class tokens of all blocks so far, with an exit after each block.

c_j is the class token in the output of block j, a a learned token, P learned positions. After block l

    H_l  = [a ; c_1 ; ... ; c_l] + P_{0..l}
    M'_l = H_l + r W_o MHSA(LN H_l);   M_l = M'_l + r FFN(LN M'_l),      r = residual_scale, 1 in the paper
    logits at exit l:  y_l = G(M_l[0] + c_l)
    block l + 1 reads M_l[last] instead of c_l

All blocks share the layer and the head G. Only M_l[0] and M_l[last] are used, and key and value of a token do not
depend on l. So keys and values are kept, and after block l only two tokens attend to the l + 1 tokens of the history.

As in the authors' code, attention is scaled by D^-1/2 and not by the width of a head, and a and P are initially
standard normal. ReeFL (Lee et al. 2024) is `attention_width = 16, num_heads = 8, qkv_bias = true, mlp_width = 518, head
= "linear", init_std = 0.02`.

Source: Liu et al. 2022 (Accumulator, arXiv 2212.04084), sizes of the authors' code; Lee et al. 2024 (ReeFL).

Shapes: K lanes, N samples of all lanes in use, D features, W features of all heads, S tokens of the history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from fedelta.errors import ModelError
from fedelta.models.hub import Backbone
from fedelta.params import ParamSpec, TensorSpec
from fedelta.settings import Settings
from fedelta.tuning.base import specification
from fedelta.tuning.exits import ExitBlock, Trace, class_token_blocks, layers_of, put_exits
from fedelta.tuning.heads import Classifier, drawn_linear, num_classes, width_of
from fedelta.tuning.lanes import LaneLayerNorm, LaneModule, Lanes, lane_parameter, random_like

# The first layer of each group; the layers that follow it, up to the next of these, travel with it.
_FIRST_OF_GROUP = ("token", "attention_norm", "mlp_norm", "classifier")


class Accumulator(Settings):
    """Trains the accumulator and its head, with an exit after every block.

    Args:
        num_heads: number of attention heads.
        attention_width: W, features of all heads together; None for the width D of the model.
        qkv_bias: whether queries, keys and values have a bias.
        mlp_width: hidden features of the FFN.
        head: G; `mlp` is LN, linear, GELU, linear; `linear` is LN, linear.
        head_width: hidden features of the `mlp` head.
        attention_scale: `width` scales attention by D^-1/2, `head` by (W / num_heads)^-1/2.
        init_std: standard deviation of the initial a and P, which are normal.
        residual_scale: r, our addition. With a small r, such as 0.03, M_l is close to H_l at first, so that blocks read
            class tokens like those of pre-training, and AdamW changes these tokens slowly while the head learns fast.
            This helps with many exits and few steps.
        num_positions: rows of P; None for the number of blocks + 1. The authors' code has 25 for DeiT-small, of which
            twelve are not used.
        replaces: whether block l + 1 reads M_l[last] instead of c_l.
    """

    name: Literal["accumulator"] = "accumulator"
    max_lanes: ClassVar[int | None] = None
    merges: ClassVar[bool] = False  # no layer of the model could hold it
    starts_as_base: ClassVar[bool] = False  # its initial values are random
    num_heads: int = Field(default=12, ge=1)  # the authors' code, here and below
    attention_width: int | None = Field(default=None, ge=1)
    qkv_bias: bool = False
    mlp_width: int = Field(default=1536, ge=1)
    head: Literal["mlp", "linear"] = "mlp"
    head_width: int = Field(default=1536, ge=1)
    attention_scale: Literal["width", "head"] = "width"
    init_std: float = Field(default=1.0, gt=0)
    residual_scale: float = Field(default=1.0, gt=0)
    num_positions: int | None = Field(default=None, ge=2)
    replaces: bool = True

    def apply(self, backbone: Backbone, lanes: Lanes, generator: Generator) -> ParamSpec:
        """See `TuningMethod.apply`."""
        blocks = layers_of(backbone, class_token_blocks(self.name, backbone))
        width, like = width_of(backbone), next(blocks[0][1].parameters())
        self._check(width, len(blocks))
        draw = _Draw(self.init_std, width, generator, like)
        module = TokenHistory(
            lanes, self, num_classes=num_classes(backbone), num_spare=self._num_spare(len(blocks)), draw=draw
        )
        trace, tensors = Trace(), {}
        exits: list[tuple[str, ExitBlock]] = []
        for path, block in blocks:
            exits.append((path, AccumulatorBlock(lanes, block, trace, module, draw.rows()[0], replaces=self.replaces)))
            tensors[f"{path}.position"] = TensorSpec((width,), path)
        put_exits(backbone, lanes, exits)
        return specification(backbone, tensors | module.specify(f"{blocks[0][0]}.accumulator"))

    def merge(self, backbone: Backbone) -> None:
        """Does nothing: the accumulator stays in the model, with all lanes."""

    def _check(self, width: int, num_blocks: int) -> None:
        inner = self.attention_width or width
        if inner % self.num_heads:
            fitting = max(divisor for divisor in range(1, self.num_heads + 1) if inner % divisor == 0)
            raise ModelError(
                f"`tuning.num_heads` is {self.num_heads}, which does not divide the {inner} features of its attention.",
                hint=f"use {fitting}.",
            )
        if self.num_positions is not None and self.num_positions <= num_blocks:
            raise ModelError(
                f"`tuning.num_positions` is {self.num_positions}, expected at least {num_blocks + 1} for {num_blocks} "
                "blocks and the token.",
                hint="leave out `tuning.num_positions`.",
            )

    def _num_spare(self, num_blocks: int) -> int:
        """Rows of P beyond those that are used."""
        return 0 if self.num_positions is None else self.num_positions - num_blocks - 1


@dataclass(frozen=True)
class _Draw:
    """Draws initial tokens and positions: rows of `width` features, on the device of `like`."""

    std: float
    width: int
    generator: Generator
    like: Tensor

    def rows(self, num: int = 1) -> Tensor:
        """[num, width]."""
        return random_like(
            self.like, (num, self.width), lambda tensor: tensor.normal_(std=self.std, generator=self.generator)
        )


class TokenHistory(LaneModule):
    """The transformer layer over the class tokens so far, and the head; shared by all exits."""

    def __init__(self, lanes: Lanes, settings: Accumulator, *, num_classes: int, num_spare: int, draw: _Draw) -> None:
        super().__init__(lanes)
        width, like = draw.width, draw.like
        inner = settings.attention_width or width
        self.num_heads = settings.num_heads
        self.scale = (width if settings.attention_scale == "width" else inner / settings.num_heads) ** -0.5
        self.residual_scale = settings.residual_scale
        self.token = lane_parameter(lanes, draw.rows()[0])
        # P_0, and the spare rows; each exit block holds its own row.
        self.position = lane_parameter(lanes, draw.rows(1 + num_spare))
        self.attention_norm = LaneLayerNorm(lanes, width, like)
        self.qkv = drawn_linear(lanes, width, 3 * inner, draw.generator, like, bias=settings.qkv_bias)
        self.out = drawn_linear(lanes, inner, width, draw.generator, like)
        self.mlp_norm = LaneLayerNorm(lanes, width, like)
        self.fc1 = drawn_linear(lanes, width, settings.mlp_width, draw.generator, like)
        self.fc2 = drawn_linear(lanes, settings.mlp_width, width, draw.generator, like)
        hidden = settings.head_width if settings.head == "mlp" else None
        self.classifier = Classifier(
            lanes, width, num_classes, inner=hidden, norm=True, generator=draw.generator, like=like
        )

    def forward(self, trace: Trace, entry_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Appends `entry_ND` = c_l + P_l to the history in `trace`; returns M_l[0] and M_l[last], both [N, D]."""
        entry = entry_ND.unsqueeze(1)
        if not trace.tensors:
            token_KD = self.token + self.position[:, 0]
            entry = torch.cat([self.lanes.repeat(token_KD, entry_ND).unsqueeze(1), entry], dim=1)
        query, key, value = self.qkv(self.attention_norm(entry)).chunk(3, dim=-1)
        if not trace.tensors:
            trace.tensors = {"token": entry[:, :1], "query": query[:, :1], "key": key, "value": value}
        else:
            trace.tensors["key"] = torch.cat([trace.tensors["key"], key], dim=1)
            trace.tensors["value"] = torch.cat([trace.tensors["value"], value], dim=1)
        history = trace.tensors
        queries = torch.cat([history["query"], query[:, -1:]], dim=1)
        attended = functional.scaled_dot_product_attention(
            self._heads(queries), self._heads(history["key"]), self._heads(history["value"]), scale=self.scale
        )
        h_N2D = torch.cat([history["token"], entry[:, -1:]], dim=1)
        h_N2D = h_N2D + self.residual_scale * self.out(attended.transpose(1, 2).flatten(2))
        m_N2D: Tensor = h_N2D + self.residual_scale * self.fc2(functional.gelu(self.fc1(self.mlp_norm(h_N2D))))
        return m_N2D[:, 0], m_N2D[:, 1]

    def specify(self, path: str) -> dict[str, TensorSpec]:
        """The specification of its tensors, for the module at `path`; a group has the name of its first layer."""
        tensors, layer = {}, ""
        for name, tensor in self.named_parameters():
            root = name.partition(".")[0]
            layer = root if root in _FIRST_OF_GROUP else layer
            tensors[f"{path}.{name}"] = TensorSpec(tuple(tensor.shape[1:]), f"{path}.{layer}")
        return tensors

    def _heads(self, x: Tensor) -> Tensor:
        """[N, S, W] to [N, heads, S, W / heads]."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


class AccumulatorBlock(ExitBlock):
    """A block followed by the accumulator."""

    def __init__(
        self,
        lanes: Lanes,
        base: nn.Module,
        trace: Trace,
        accumulator: TokenHistory,
        position_D: Tensor,
        *,
        replaces: bool,
    ) -> None:
        super().__init__(lanes, base, trace)
        self.accumulator = accumulator
        self.position = lane_parameter(lanes, position_D)
        self.replaces = replaces

    def observe(self, y: Tensor) -> Tensor:
        """See `ExitBlock.observe`; the class token of `y` is replaced."""
        class_ND = y[:, 0]
        first_ND, last_ND = self.accumulator(self.trace, class_ND + self.lanes.repeat(self.position, y))
        self.trace.summary = first_ND + class_ND
        if not self.replaces:
            return y
        return torch.cat([last_ND.unsqueeze(1).to(y.dtype), y[:, 1:]], dim=1)

    def head(self, summary: Tensor) -> Tensor:
        """See `ExitBlock.head`."""
        logits: Tensor = self.accumulator.classifier(summary)
        return logits
