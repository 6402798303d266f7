"""Makes the output object of a transformers base model from cached features."""

from __future__ import annotations

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling


def base_output(last_hidden_state: Tensor, pooler_output: Tensor | None) -> BaseModelOutputWithPooling:
    """The output of a base model, for tokens [B, T, D] and a pooled output [B, D] or None."""
    return BaseModelOutputWithPooling(last_hidden_state=last_hidden_state, pooler_output=pooler_output)
