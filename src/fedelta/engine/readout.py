"""The last block of a model that answers from its first token, computed for that token only.

A classifier such as ViT or BERT reads one token of the last block's output, so that the block's output projection, its
MLP and most of its attention need not be computed for the others:

    a_t = softmax_t(s q . k(x_t)),   s q . k(x_t) = (s W_k^T q) . x_t + a constant that falls out of the softmax
    sum_t a_t v(x_t) = v(sum_t a_t x_t),   since v is affine and the weights of a head sum to one

q is computed for the first token, and k and v for no token at all: each head multiplies the tokens with one vector and
sums them with one weight each. v may have been tuned; any affine layer will do. Where k has been tuned it is computed
for every token. The model's own code runs the rest of the block on the first token.

Nothing of this is assumed of a model: `engine/proof.py` compares outputs and gradients with those of the whole block.

Shapes: B samples, T tokens, D features of a token, H heads, F features of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedelta.engine.stand_ins import replaced
from fedelta.modalities.base import Inputs
from fedelta.models.hub import Backbone
from fedelta.models.layers import is_plain
from fedelta.tuning.base import block_paths, untouched

_NAMES_OF_HEADS = ("num_attention_heads", "num_heads", "n_heads")


@dataclass(frozen=True)
class Readout:
    """A model whose last block is computed for the first token only, inside `active`.

    Args:
        module: the model.
        stand_ins: current path to what takes the place of the block and its attention.
    """

    module: nn.Module
    stand_ins: Mapping[str, nn.Module]

    @contextmanager
    def active(self) -> Iterator[None]:
        """A context in which the model computes only what its head reads."""
        with replaced(self.module, self.stand_ins):
            yield


def find_readout(backbone: Backbone) -> Readout | None:
    """The readout of a model, to be proved; None if its last block does not have the parts of one.

    Args:
        backbone: the model with the tuning method applied.
    """
    roles, blocks = backbone.anatomy.roles, block_paths(backbone)
    inside = {roles[role].rpartition(".")[0] for role in "qkv" if role in roles}
    if not blocks or len(inside) != 1 or not {"q", "k", "v", "o"} <= roles.keys():
        return None
    (place,) = inside
    layers = untouched(backbone.module)
    block_path, block = layers[blocks[-1]]
    attention_path, attention = layers.get(f"{blocks[-1]}.{place}", ("", nn.Identity()))
    num_heads = next((getattr(attention, name) for name in _NAMES_OF_HEADS if name in vars(attention)), None)
    if not place or not isinstance(num_heads, int):
        return None
    q, k, v, o = (_outermost(attention, place, roles[role]) for role in "qkvo")
    query = _OneQuery(q, k, v, o, num_heads)
    is_wrapped = block_path != blocks[-1]
    return Readout(backbone.module, {attention_path: query, block_path: _FirstToken(block, query, is_wrapped)})


def _outermost(attention: nn.Module, place: str, path: str) -> nn.Module | None:
    """The layer at `path` of a block with the modules of tuning methods around it; None outside of the attention."""
    return attention.get_submodule(path.removeprefix(f"{place}.")) if path.startswith(f"{place}.") else None


class _TokensError(Exception):
    """Stops a block at its attention, and carries what the attention reads."""

    def __init__(self, tokens_BTD: Tensor, mask: Tensor | None) -> None:
        super().__init__("the attention of the last block reached")
        self.tokens_BTD = tokens_BTD
        self.mask = mask


class _OneQuery(nn.Module):
    """Attention of the first token to all tokens.

    Args:
        q, k, v: the projections of the attention, with what tuning methods have put around them.
        o: its output projection; None if the block calls it after the attention.
        num_heads: H.

    Attributes:
        read: what the attention reads; without it a call stops the block.
    """

    def __init__(
        self, q: nn.Module | None, k: nn.Module | None, v: nn.Module | None, o: nn.Module | None, num_heads: int
    ) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = q, k, v, o
        self.num_heads = num_heads
        self.read: _TokensError | None = None

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, None]:
        """[B, 1, D]; `hidden` counts only where the block is stopped.

        Raises:
            _TokensError: `read` is not set.
            TypeError: the attention is called with something else than tokens and a mask.
        """
        if self.read is None:
            raise _TokensError(hidden, _mask_of([*args, *kwargs.values()]))
        x_BTD, mask = self.read.tokens_BTD, self.read.mask
        scores_BHT = self._scores(x_BTD)
        if mask is not None:
            scores_BHT = _masked(scores_BHT, mask[:, :, 0])
        sums_BHD = torch.bmm(scores_BHT.softmax(-1).to(x_BTD.dtype), x_BTD)
        # Of the values of each head's sum, that head's own.
        heads_BHHF = self.v(sums_BHD).unflatten(-1, (self.num_heads, -1))
        output = heads_BHHF.diagonal(dim1=1, dim2=2).transpose(1, 2).flatten(1).unsqueeze(1)
        return (output if self.o is None else self.o(output)), None

    def _scores(self, x_BTD: Tensor) -> Tensor:
        """s q . k(x_t), up to a constant for each head and sample."""
        q_BHF = self.q(x_BTD[:, :1]).squeeze(1).unflatten(-1, (self.num_heads, -1))
        q_BHF = q_BHF * q_BHF.shape[-1] ** -0.5
        if is_plain(self.k, nn.Linear):
            weight_HFD = self.k.weight.unflatten(0, (self.num_heads, -1))
            reader_BHD = torch.bmm(q_BHF.transpose(0, 1), weight_HFD).transpose(0, 1)
            return torch.bmm(reader_BHD, x_BTD.transpose(1, 2))
        k_BTHF = self.k(x_BTD).unflatten(-1, (self.num_heads, -1))
        return (k_BTHF.permute(0, 2, 1, 3) @ q_BHF.unsqueeze(-1)).squeeze(-1)


class _FirstToken(nn.Module):
    """A block of which only the first token of the output is computed.

    Args:
        block: the block, whose attention is `query`.
        query: the attention.
        is_wrapped: whether a tuning method has put something around the block, which then gets all tokens, each of them
            the first one.
    """

    def __init__(self, block: nn.Module, query: _OneQuery, is_wrapped: bool) -> None:
        super().__init__()
        self.block = block
        self.query = query
        self.is_wrapped = is_wrapped

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        """[B, T, D] to [B, 1, D], or to [B, T, D] if the block is wrapped."""
        try:
            self.block(hidden, *args, **kwargs)
        except _TokensError as tokens:
            self.query.read = tokens
        try:
            first: Tensor = self.block(hidden[:, :1], *args, **kwargs)
        finally:
            self.query.read = None
        return first.expand(hidden.shape) if self.is_wrapped else first


class HalfMasked:
    """Inputs in which the first row of a batch has padding: its attention mask, if any, ends after half the tokens.

    A trial on them shows what a model does with a mask, whatever the lengths of the rows.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The inputs of `rows`, with the mask changed."""
        tensors = self._inputs.fetch(rows)
        if (mask := tensors.get("attention_mask")) is None:
            return tensors
        mask = mask.clone()
        mask[0, (mask.shape[1] + 1) // 2 :] = 0
        return tensors | {"attention_mask": mask}


def _mask_of(arguments: list[object]) -> Tensor | None:
    """The attention mask [B, 1 or H, T or 1, T] among the arguments of an attention; None without one."""
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    others = [value for value in arguments if not isinstance(value, Tensor | bool | int | float | str | None)]
    if others or len(tensors) > 1 or any(tensor.dim() != 4 for tensor in tensors):
        raise TypeError("the attention reads more than tokens and a mask")
    return tensors[0] if tensors else None


def _masked(scores_BHT: Tensor, mask_BHT: Tensor) -> Tensor:
    """Scores with a mask that is added, or that is False where a token is not attended to."""
    if mask_BHT.dtype == torch.bool:
        return scores_BHT.masked_fill(~mask_BHT, float("-inf"))
    return scores_BHT + mask_BHT
