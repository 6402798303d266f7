"""Attention among the tokens of a row, for a model that is called with each token as a row of its own.

A batch of texts has padding, for which every layer would be computed too. Called with N tokens of all rows as [N, 1],
a model computes its layers for these alone; only its attention has to know which tokens belong together. Models of
transformers take an attention by its name, which is how this one gets there.

Shapes: N tokens of all rows, B rows, T tokens of the longest, H heads, G heads of keys and values, F features of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

_NAME = "fedelta_unpadded"


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch are in its rows.

    Args:
        places: of each token among all B x T, row after row, int64 of shape [N].
        lengths: number of tokens of each of the B rows.
    """

    places: Tensor
    lengths: list[int]

    @classmethod
    def of(cls, mask_BT: Tensor) -> Layout:
        """The layout of the tokens where the mask is not 0."""
        lengths = mask_BT.sum(1)
        return cls(mask_BT[:, : int(lengths.max())].flatten().nonzero()[:, 0], lengths.tolist())

    @property
    def longest(self) -> int:
        """T."""
        return max(self.lengths)

    def rows(self, x: Tensor) -> Tensor:
        """Values of tokens [N, H, 1, F] in rows [B, H, T, F], with zeros as padding."""
        x_NHF = x.squeeze(2)
        size = len(self.lengths) * self.longest
        if len(x_NHF) < size:
            x_NHF = x_NHF.new_zeros(size, *x_NHF.shape[1:]).index_copy(0, self.places, x_NHF)
        x_BTHF: Tensor = x_NHF.unflatten(0, (-1, self.longest))
        return x_BTHF.transpose(1, 2)

    def tokens(self, x_BHTF: Tensor) -> Tensor:
        """Values in rows [B, H, T, F] by token: [N, 1, H, F]."""
        x = x_BHTF.transpose(1, 2).flatten(0, 1)
        return (x if len(x) == len(self.places) else x.index_select(0, self.places)).unsqueeze(1)

    def each(self, x: Tensor) -> list[Tensor]:
        """Values of tokens [N, H, 1, F] of each row alone: [1, H, its tokens, F]."""
        return [row.transpose(0, 1).unsqueeze(0) for row in x.squeeze(2).split(self.lengths)]


@contextmanager
def attending_within_rows(module: nn.Module) -> Iterator[None]:
    """A context in which the model's attention is that of `Layout`, given as the argument `layout` of each call.

    Raises:
        TypeError: the model does not take its attention by name.
    """
    from transformers import AttentionInterface, PreTrainedModel

    if not isinstance(module, PreTrainedModel) or not module._supports_attention_backend:
        raise TypeError(f"{type(module).__name__} has an attention of its own")
    AttentionInterface.register(_NAME, _attend)
    config = module.config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(  # noqa: PLR0917 as transformers calls it
    module: nn.Module,  # noqa: ARG001 likewise
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Causal attention of tokens [N, H, 1, F] to keys and values [N, G, 1, F]: [N, 1, H, F].

    Raises:
        TypeError: the model asks for something else.
    """
    odd = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if layout is None or attention_mask is not None or dropout or odd:
        raise TypeError("the model's attention reads more than its tokens")
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    if query.device.type == "cpu":
        # A call costs little here, and the square of padding much.
        triples = zip(layout.each(query), layout.each(key), layout.each(value), strict=True)
        rows = [_within(q, k, v, scaling, sliding_window) for q, k, v in triples]
        return torch.cat([row.squeeze(0).transpose(0, 1) for row in rows]).unsqueeze(1), None
    q, k, v = (layout.rows(x) for x in (query, key, value))
    return layout.tokens(_within(q, k, v, scaling, sliding_window)), None


def _within(
    q_BHTF: Tensor, k_BHTF: Tensor, v_BHTF: Tensor, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """Causal attention within rows, whose padding comes after their tokens: [B, H, T, F]."""
    length = q_BHTF.shape[2]
    if sliding_window is None or length <= sliding_window:
        return scaled_dot_product_attention(q_BHTF, k_BHTF, v_BHTF, is_causal=True, scale=scaling)
    places = torch.arange(length, device=q_BHTF.device)
    ago = places.unsqueeze(1) - places
    mask = (ago >= 0) & (ago < sliding_window)
    return scaled_dot_product_attention(q_BHTF, k_BHTF, v_BHTF, mask, scale=scaling)
