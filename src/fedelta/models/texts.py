"""Finds how a text model handles padding, and how long its texts may be."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedelta.errors import ModelError
from fedelta.modalities.base import ModelFiles
from fedelta.modalities.text import FOREIGN, Texts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger("fedelta")

# Names of embedding tables with one row per position; tables of relative positions do not count.
_POSITIONS = re.compile(
    r"(^|\.)((char_)?position_embeddings?|embed_positions|wpe|pos_embed(ding)?s?|positions_embed|pos_encoding)$"
)
# Families whose number of positions is limited by computed, not learned, tensors.
_COMPUTED = ("codegen", "ctrl", "gptj", "mpt")

# Two texts of clearly different length for trials.
_SHORT, _LONG = "a", "one two three four five six seven"
# Enough tokens for every family that pools tokens.
_POOLED = 8


def num_positions(module: nn.Module) -> int | None:
    """Maximum number of tokens that a model has positions for; None if it has no limit.

    RoBERTa and related families do not use the rows up to that of the padding token, BART and OPT not the first two.
    """
    config = _config_of(module)
    configured = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    limits = [
        layer.get_parameter("weight").shape[0] - _offset(layer)
        for path, layer in module.named_modules()
        if _POSITIONS.search(path) and "vision" not in path and "weight" in dict(layer.named_parameters())
    ]
    if configured is not None and (limits or config.model_type in _COMPUTED):
        limits.append(configured)
    return min(limits, default=None)


def with_context(files: ModelFiles) -> ModelFiles:
    """`files` with the context that a language model was trained for, if that is shorter than its table of positions.

    Rotary positions go on beyond it without an error, but a model gives poor answers there.
    """
    context = getattr(files.config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (files.num_positions, context) if isinstance(limit, int)]
    return replace(files, num_positions=min(limits, default=None))


def _config_of(module: nn.Module) -> PretrainedConfig:
    """What the configuration of a network of transformers says of texts."""
    config: PretrainedConfig = vars(module)["config"]
    return config.get_text_config()


def _offset(layer: nn.Module) -> int:
    offset, padding = vars(layer).get("offset"), vars(layer).get("padding_idx")
    if isinstance(offset, int):
        return offset
    return 0 if padding is None else padding + 1


@torch.no_grad()
def settle_padding(module: nn.Module, texts: Texts) -> Texts:
    """`texts` with the padding side for which a text gets the same answer in a batch as alone.

    A decoder answers from the last token that is not padding, so its configuration must name the padding token. XLNet
    answers from the last position, so padding must come first.

    Args:
        module: in evaluation mode; its configuration gets the padding token if it lacks one.
        texts: with the model's tokenizer.

    Raises:
        ModelError: the model fails on a text, or the tokenizer belongs to another model.
    """
    _share_padding(module, texts)
    pair = texts.encode([_SHORT, _LONG])
    try:
        _outputs(module, texts, pair[:1])
    except Exception:  # noqa: BLE001 a network may raise any error for few tokens; a second failure is reported
        texts = replace(texts, min_length=_POOLED)
    differences = []
    for side in ("right", "left"):
        padded_texts = replace(texts, padding_side=side)
        differences.append(_difference(module, padded_texts, pair))
        if differences[-1] < 1e-3:  # far above rounding, and far below the effect of attending to padding
            return padded_texts
    logger.warning(
        "outputs of %s depend on the length of the other texts in a batch (by %.0f %% in a trial): it attends to "
        "padding.",
        type(module).__name__,
        100 * differences[0],
    )
    return texts


@torch.no_grad()
def settle_words(module: nn.Module, texts: Texts) -> Texts:
    """`texts`, padded at the end, for a model that answers for each token; warns if a text's answers depend on padding.

    Args:
        module: in evaluation mode; its configuration gets the padding token if it lacks one.
        texts: with the model's tokenizer.

    Raises:
        ModelError: the model fails on a text, or the tokenizer belongs to another model.
    """
    _share_padding(module, texts)
    short, long = texts.encode([_SHORT, _LONG])
    try:
        together, alone = _outputs(module, texts, [short, long])[:1, : len(short)], _outputs(module, texts, [short])
    except Exception as error:  # a network may raise any error
        raise ModelError(f"{type(module).__name__} fails on a text of {len(short)} tokens: {error}") from error
    difference = float((together - alone).abs().max() / alone.abs().max().clamp_min(1e-12))
    if difference >= 1e-3:
        logger.warning(
            "outputs of %s depend on the length of the other texts in a batch (by %.0f %% in a trial): it attends to "
            "padding.",
            type(module).__name__,
            100 * difference,
        )
    return texts


def _share_padding(module: nn.Module, texts: Texts) -> None:
    config, tokenizer = _config_of(module), texts.tokenizer
    is_decoder = "score" in dict(module.named_children())  # transformers' name for a head that reads the last token
    if config.pad_token_id is None or is_decoder:
        config.pad_token_id = tokenizer.pad_token_id
    elif config.pad_token_id != tokenizer.pad_token_id:
        # RoBERTa counts positions from its padding token. Others mask padding, but further ids probably differ too.
        raise ModelError(
            f"the tokenizer in {tokenizer.name_or_path!r} does not belong to the model: its padding token id is "
            f"{tokenizer.pad_token_id}, that of the model {config.pad_token_id}.",
            hint=FOREIGN,
        )


def _difference(module: nn.Module, texts: Texts, pair: Sequence[Sequence[int]]) -> float:
    """Largest difference between the outputs of texts in a batch and alone, relative to the largest output."""
    try:
        together = _outputs(module, texts, pair)
        alone = torch.cat([_outputs(module, texts, [tokens]) for tokens in pair])
    except Exception as error:  # a network may raise any error
        raise ModelError(f"{type(module).__name__} fails on a text of {len(pair[0])} tokens: {error}") from error
    return float((together - alone).abs().max() / alone.abs().max().clamp_min(1e-12))


def _outputs(module: nn.Module, texts: Texts, rows: Sequence[Sequence[int]]) -> Tensor:
    logits: Tensor = module(**texts.transform(rows)).logits
    return logits
