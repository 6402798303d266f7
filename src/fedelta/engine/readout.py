"""The last block of a model that answers from its first token, computed for that token only.

A classifier such as ViT or BERT reads one token of the last block's output, so that the block's output projection, its
MLP and most of its attention need not be computed for the others:

    a_t = softmax_t(s q . k(x_t)),   s q . k(x_t) = (s W_k^T q) . x_t + a constant that falls out of the softmax
    sum_t a_t v(x_t) = v(sum_t a_t x_t),   since v is affine and the weights of a head sum to one

q is computed for the first token, and k and v for no token at all: each head multiplies the tokens with one vector and
sums them with one weight each. v may have been tuned; any affine layer will do. Where k has been tuned it is computed
for every token. The model's own code runs the rest of the block on the first token. Attention of another kind, with
relative positions for example, is computed for all tokens, and only what comes after it for the first one.

Nothing of this is assumed of a model: `engine/proof.py` compares outputs and gradients with those of the whole block.
`engine/emphasis.py` makes them depend on every layer.

Shapes: B samples, T tokens, D features of a token, H heads, F features of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedelta.engine.emphasis import emphasised
from fedelta.engine.pausing import Pausing, ReachedError
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
        attention_path: current path of the attention of the last block.
        block_path: current path of the last block.
        first: what takes the place of the block.
    """

    module: nn.Module
    attention_path: str
    block_path: str
    first: _FirstToken

    @contextmanager
    def active(self) -> Iterator[None]:
        """A context in which the model computes only what its head reads."""
        with replaced(self.module, {self.attention_path: self.first.pausing, self.block_path: self.first}):
            yield

    def emphasised(self, run: Callable[[], object]) -> AbstractContextManager[None]:
        """A context in which outputs show what each layer computes; `run` runs the model once."""
        attention = self.first.pausing.attention
        return emphasised(self.module, (attention.q, attention.k) if isinstance(attention, _OneQuery) else None, run)

    @property
    def leaves_out(self) -> bool:
        """Whether the last call had tokens to leave out."""
        return self.first.num_tokens > 1


def find_readouts(backbone: Backbone) -> list[Readout]:
    """What may take the place of the last block, the least work first; each has yet to be proved.

    Args:
        backbone: the model with the tuning method applied.
    """
    roles, blocks = backbone.anatomy.roles, block_paths(backbone)
    place = roles.get("q", "").rpartition(".")[0]
    layers = untouched(backbone.module)
    if not blocks or not place or f"{blocks[-1]}.{place}" not in layers:
        return []
    block_path, block = layers[blocks[-1]]
    attention_path, attention = layers[f"{blocks[-1]}.{place}"]
    is_wrapped = block_path != blocks[-1]
    attentions = filter(None, (_one_query(attention, place, roles), _AllQueries(attention)))
    return [
        Readout(backbone.module, attention_path, block_path, _FirstToken(block, Pausing(attention), is_wrapped))
        for attention in attentions
    ]


class _FirstToken(nn.Module):
    """A block that computes the first token of its output only.

    The block is run up to its attention with all tokens, and then anew with the first one.

    Args:
        block: the block, whose attention is `pausing`.
        pausing: attention of the first token to all tokens.
        is_wrapped: whether a tuning method has put something around the block, which then gets all tokens, each of them
            the first one.

    Attributes:
        num_tokens: T of the last call.
    """

    def __init__(self, block: nn.Module, pausing: Pausing, is_wrapped: bool) -> None:
        super().__init__()
        self.block = block
        self.pausing = pausing
        self.is_wrapped = is_wrapped
        self.num_tokens = 0

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        """[B, T, D] to [B, 1, D], or to [B, T, D] if the block is wrapped."""
        self.num_tokens = hidden.shape[1]
        try:
            self.block(hidden, *args, **kwargs)
            raise TypeError("the block does not call its attention")
        except ReachedError as reached:
            self.pausing.arguments = reached.arguments
        try:
            first: Tensor = self.block(hidden[:, :1], *args, **kwargs)
        finally:
            self.pausing.arguments = None
        return first.expand(hidden.shape) if self.is_wrapped else first


class _AllQueries(nn.Module):
    """An attention of any kind, of whose output the first token is kept."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *args: object, **kwargs: object) -> tuple[object, ...]:
        output, *others = self.attention(*args, **kwargs)
        return (output[:, :1], *others)


def _one_query(attention: nn.Module, place: str, roles: Mapping[str, str]) -> _OneQuery | None:
    """Attention of the first token, if `attention`, at `place` in its block, has the parts for it."""
    num_heads = next((getattr(attention, name) for name in _NAMES_OF_HEADS if name in vars(attention)), None)
    names = {role: path.removeprefix(f"{place}.") for role, path in roles.items() if path.startswith(f"{place}.")}
    if not {"q", "k", "v"} <= names.keys() or not isinstance(num_heads, int):
        return None
    # With what tuning methods have put around them.
    q, k, v = (attention.get_submodule(names[role]) for role in "qkv")
    return _OneQuery(q, k, v, attention.get_submodule(names["o"]) if "o" in names else None, num_heads)


class _OneQuery(nn.Module):
    """Attention of the first token to all tokens.

    Args:
        q, k, v: the projections of the attention.
        o: its output projection; None if the block calls it after the attention.
        num_heads: H.
    """

    def __init__(self, q: nn.Module, k: nn.Module, v: nn.Module, o: nn.Module | None, num_heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = q, k, v, o
        self.num_heads = num_heads

    def forward(self, x_BTD: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, None]:
        """[B, T, D] to [B, 1, D].

        Raises:
            TypeError: the attention is called with something else than tokens and a mask.
        """
        mask_BHT = _first_rows(_mask_of([*args, *kwargs.values()]))
        scores_BHT = _masked(self._scores(x_BTD), mask_BHT)
        weights_BHT = scores_BHT.softmax(-1, dtype=torch.float32).to(x_BTD.dtype)
        sums_BHD = torch.bmm(weights_BHT, x_BTD)
        # Of the values of each head's sum, that head's own.
        values_BHHF = self.v(sums_BHD).unflatten(-1, (self.num_heads, -1))
        values_BHF = values_BHHF.diagonal(dim1=1, dim2=2).transpose(1, 2)
        if mask_BHT is not None and mask_BHT.dtype == torch.bool:
            # As in PyTorch, attention to no token at all is zero.
            values_BHF = values_BHF.masked_fill(~mask_BHT.any(-1, keepdim=True), 0)
        output_B1D = values_BHF.flatten(1).unsqueeze(1)
        return (output_B1D if self.o is None else self.o(output_B1D)), None

    def _scores(self, x_BTD: Tensor) -> Tensor:
        """The scores s q . k(x_t), up to a constant for each head and sample."""
        q_BHF: Tensor = self.q(x_BTD[:, :1]).squeeze(1).unflatten(-1, (self.num_heads, -1))
        q_BHF = q_BHF * q_BHF.shape[-1] ** -0.5
        if is_plain(self.k, nn.Linear):
            weight_HFD = self.k.get_parameter("weight").unflatten(0, (self.num_heads, -1))
            reader_BHD = torch.bmm(q_BHF.transpose(0, 1), weight_HFD).transpose(0, 1)
            return torch.bmm(reader_BHD, x_BTD.transpose(1, 2))
        k_BTHF: Tensor = self.k(x_BTD).unflatten(-1, (self.num_heads, -1))
        return (k_BTHF.permute(0, 2, 1, 3) @ q_BHF.unsqueeze(-1)).squeeze(-1)


def _mask_of(arguments: Sequence[object]) -> Tensor | None:
    """The attention mask [B, 1 or H, T or 1, T] among the arguments of an attention; None without one."""
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    others = [value for value in arguments if not isinstance(value, Tensor | bool | int | float | str | None)]
    if others or len(tensors) > 1 or any(tensor.dim() != 4 for tensor in tensors):
        raise TypeError("the attention reads more than tokens and a mask")
    return tensors[0] if tensors else None


def _first_rows(mask: Tensor | None) -> Tensor | None:
    """What a mask says of the first token: [B, 1 or H, T]."""
    return None if mask is None else mask[:, :, 0]


def _masked(scores_BHT: Tensor, mask_BHT: Tensor | None) -> Tensor:
    """Scores with a mask that is added, or that is False where a token is not attended to."""
    if mask_BHT is None:
        return scores_BHT
    if mask_BHT.dtype == torch.bool:
        # Not minus infinity, which gives NaN where no token is attended to.
        return scores_BHT.masked_fill(~mask_BHT, torch.finfo(scores_BHT.dtype).min)
    return scores_BHT + mask_BHT


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
