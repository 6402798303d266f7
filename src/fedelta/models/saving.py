"""Writes a model in the form in which transformers loads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from fedelta.errors import ModelError
from fedelta.models.weights import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def save_model(
    module: nn.Module, directory: Path, tokenizer: PreTrainedTokenizerBase | None = None, template: str | None = None
) -> None:
    """Writes the model to a new directory, with its tokenizer if there is one.

    Args:
        module: a network of transformers, without modules of tuning methods.
        directory: to be made.
        tokenizer: of the model.
        template: its chat template, in Jinja; None for the tokenizer's own.

    Raises:
        ModelError: `module` is no network of transformers.
    """
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        raise ModelError(
            f"{type(module).__name__} cannot be written as a directory of transformers: it is no network of it.",
            hint="save its `state_dict()` with safetensors.",
        )
    with quiet_transformers():
        module.save_pretrained(directory)
    if tokenizer is not None:
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(directory)
