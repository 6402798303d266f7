"""Attention among the tokens of a row, for a model that is called with each token as a row of its own.

A batch of texts has padding, for which every layer would be computed too. Called with N tokens of all rows as [N, 1],
a model computes its layers for these alone; only its attention has to know which tokens belong together. Models of
transformers take an attention by its name, which is how this one gets there.

Shapes: N tokens of all rows, B rows, T tokens of the longest, H heads, G heads of keys and values, F features of a head.
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
        num_rows: B.
        length: T.
    """

    places: Tensor
    num_rows: int
    length: int

    @classmethod
    def of(cls, mask_BT: Tensor) -> Layout:
        """The layout of the tokens where the mask is not 0."""
        length = int(mask_BT.sum(1).max())
        return cls(mask_BT[:, :length].flatten().nonzero()[:, 0], len(mask_BT), length)

    def rows(self, x: Tensor) -> Tensor:
        """Values of tokens [N, H, 1, F] in rows [B, H, T, F], with zeros as padding."""
        x_NHF = x.squeeze(2)
        size = self.num_rows * self.length
        if len(x_NHF) < size:
            x_NHF = x_NHF.new_zeros(size, *x_NHF.shape[1:]).index_copy(0, self.places, x_NHF)
        return x_NHF.unflatten(0, (self.num_rows, self.length)).transpose(1, 2)

    def tokens(self, x_BHTF: Tensor) -> Tensor:
        """Values in rows [B, H, T, F] by token: [N, 1, H, F]."""
        x = x_BHTF.transpose(1, 2).flatten(0, 1)
        return (x if len(x) == len(self.places) else x.index_select(0, self.places)).unsqueeze(1)


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
    q, k, v = (layout.rows(x) for x in (query, key, value))
    if (groups := q.shape[1] // k.shape[1]) > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    if sliding_window is None or layout.length <= sliding_window:
        # Padding comes after the tokens of a row, which look back only.
        rows = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    else:
        places = torch.arange(layout.length, device=q.device)
        ago = places.unsqueeze(1) - places
        rows = scaled_dot_product_attention(q, k, v, (ago >= 0) & (ago < sliding_window), scale=scaling)
    return layout.tokens(rows), None
