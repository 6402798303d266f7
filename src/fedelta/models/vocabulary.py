"""Where a language model gives its words: the output embedding, and whether logits are what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedelta.errors import ModelError
from fedelta.models.layers import is_plain
from fedelta.models.token_losses import LossHead, next_tokens, sums_of_logits

_TRIED = 30.0  # logits of a size at which a soft cap shows
_ROUNDING = 64.0  # logits that differ by fewer units in the last place of the largest are the same


@dataclass(frozen=True)
class Vocabulary:
    """The output embedding of a language model.

    Args:
        path: of the layer.
        gives_logits: whether the model returns what this layer gives, unchanged.
    """

    path: str
    gives_logits: bool

    def size(self, module: nn.Module) -> int:
        """The number of words."""
        return module.get_submodule(self.path).get_parameter("weight").shape[-2]

    def sums(self, module: nn.Module, inputs: Mapping[str, Tensor], extra: Mapping[str, bool]) -> Tensor:
        """The sum of the losses of each row, float32 of shape [B, 1].

        Args:
            module: the language model.
            inputs: with `labels` [B, T], of which -100 is not trained on.
            extra: further keyword arguments of the model.
        """
        others = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        targets_BT = next_tokens(inputs["labels"])
        head = module.get_submodule(self.path)
        if not self.gives_logits:
            return sums_of_logits(module(**others, **extra).logits, targets_BT).unsqueeze(1)
        stand_in = LossHead(head, targets_BT)
        _call_with(module, self.path, stand_in, others, extra)
        if stand_in.sums_B is None:
            raise ModelError(f"{type(module).__name__} does not call its output embedding `{self.path}`.")
        return stand_in.sums_B.unsqueeze(1)


def vocabulary_of(module: nn.Module) -> Vocabulary:
    """The output embedding of `module`, after trials of what the model reads and what it does with its logits.

    Raises:
        ModelError: it has none, or the model sees the words that it is to predict.
    """
    # Any model of transformers for causal language modelling has the method.
    layer: nn.Module | None = getattr(module, "get_output_embeddings", lambda: None)()
    paths = [path for path, part in module.named_modules() if part is layer]
    if layer is None or not paths:
        raise ModelError(
            f"{type(module).__name__} has no output embedding, so it gives no words.",
            hint="use a causal language model of transformers.",
        )
    _check_causal(module, layer)
    return Vocabulary(paths[0], is_plain(layer, nn.Linear) and _passes_on(module, paths[0]))


@torch.no_grad()
def _check_causal(module: nn.Module, layer: nn.Module) -> None:
    """Raises if another last word changes the logits before it, as it does in an encoder with an output embedding."""
    device = layer.get_parameter("weight").device
    if device.type == "meta":
        return  # a model for counting
    logits = module(input_ids=torch.tensor([[0, 1, 0, 0], [0, 1, 0, 1]], device=device), use_cache=False).logits
    one, other = logits[:, :-1].float()
    if (one - other).abs().max() > _ROUNDING * torch.finfo(logits.dtype).eps * one.abs().max():
        raise ModelError(
            f"{type(module).__name__} reads the words that it is to predict: its attention looks ahead.",
            hint="use a causal language model, such as one of the families llama, qwen3, gpt2 or opt.",
        )


class _Fixed(nn.Module):
    """Gives the same logits whatever the hidden states are."""

    def __init__(self, logits_BTV: Tensor) -> None:
        super().__init__()
        self.logits_BTV = logits_BTV

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, V]."""
        return self.logits_BTV.to(hidden_BTD.dtype)


@torch.no_grad()
def _passes_on(module: nn.Module, path: str) -> bool:
    """Whether the model returns unchanged what its output embedding gives."""
    weight = module.get_submodule(path).get_parameter("weight")
    if weight.device.type == "meta":
        return True  # a model for counting
    logits = torch.linspace(-_TRIED, _TRIED, 2 * weight.shape[0], device=weight.device).view(1, 2, -1)
    inputs = {"input_ids": torch.zeros(1, 2, dtype=torch.int64, device=weight.device)}
    output = _call_with(module, path, _Fixed(logits), inputs, {"use_cache": False})
    return torch.equal(output.logits, logits.to(output.logits.dtype))


def _call_with(
    module: nn.Module, path: str, stand_in: nn.Module, inputs: Mapping[str, Tensor], extra: Mapping[str, bool]
) -> Any:  # the output object of a model of transformers
    """The output of the model with `stand_in` in the place of the layer at `path`."""
    parent, _, name = path.rpartition(".")
    holder = module.get_submodule(parent)
    layer = holder.get_submodule(name)
    setattr(holder, name, stand_in)
    try:
        return module(**inputs, **extra)
    finally:
        setattr(holder, name, layer)
