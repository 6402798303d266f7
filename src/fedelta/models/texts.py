"""What a text model does with padding and with long texts, found out by asking it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedelta.errors import ModelError
from fedelta.modalities.text import FOREIGN, Texts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger("fedelta")

# Names of tables with a row for each position; tables of distances between tokens are none.
_POSITIONS = re.compile(
    r"(^|\.)((char_)?position_embeddings?|embed_positions|wpe|pos_embed(ding)?s?|positions_embed|pos_encoding)$"
)
# Families whose positions are bounded by tensors that are computed, not learned.
_COMPUTED = ("codegen", "ctrl", "gptj", "mpt")

# About as few tokens as a text can have, and some more.
_SHORT, _LONG = "a", "one two three four five six seven"
# More tokens than any family needs to pool them.
_POOLED = 8


def num_positions(module: nn.Module) -> int | None:
    """Most tokens that a model has positions for; None where nothing bounds them.

    RoBERTa and its kin leave out the rows of their table up to that of the padding token, BART and OPT the first two.
    """
    config = _config_of(module)
    said = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    rooms = [
        layer.get_parameter("weight").shape[0] - _offset(layer)
        for path, layer in module.named_modules()
        if _POSITIONS.search(path) and "vision" not in path and "weight" in dict(layer.named_parameters())
    ]
    if said is not None and (rooms or config.model_type in _COMPUTED):
        rooms.append(said)
    return min(rooms, default=None)


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
    """`texts` with the padding under which a text's answer is the same in a batch and alone.

    A decoder looks for the last token that is no padding, so that its configuration has to know the padding token;
    XLNet looks at the last place, so that padding comes first.

    Args:
        module: in evaluation mode; its configuration gets the padding token where it lacks it.
        texts: with the model's own tokenizer.

    Raises:
        ModelError: the model fails on a text, or the tokenizer is another model's.
    """
    _share_padding(module, texts)
    pair = texts.encode([_SHORT, _LONG])
    try:
        _outputs(module, texts, pair[:1])
    except Exception:  # noqa: BLE001 whatever a foreign network makes of few tokens; a second failure is told
        texts = replace(texts, min_length=_POOLED)
    differences = []
    for side in ("right", "left"):
        tried = replace(texts, padding_side=side)
        differences.append(_difference(module, tried, pair))
        if differences[-1] < 1e-3:  # far above rounding, and below what padding in place of a token does
            return tried
    logger.warning(
        "answers of %s depend on how long the other texts of a batch are, by %.0f %% here: it looks at padding.",
        type(module).__name__,
        100 * differences[0],
    )
    return texts


def _share_padding(module: nn.Module, texts: Texts) -> None:
    config, tokenizer = _config_of(module), texts.tokenizer
    is_decoder = "score" in dict(module.named_children())  # so transformers calls the head that reads the last token
    if config.pad_token_id is None or is_decoder:
        config.pad_token_id = tokenizer.pad_token_id
    elif config.pad_token_id != tokenizer.pad_token_id:
        # RoBERTa counts positions from its padding token; to others padding is masked, but the rest is shifted too.
        raise ModelError(
            f"the tokenizer in {tokenizer.name_or_path!r} does not belong to the model: its padding token is number "
            f"{tokenizer.pad_token_id}, that of the model {config.pad_token_id}.",
            hint=FOREIGN,
        )


def _difference(module: nn.Module, texts: Texts, pair: Sequence[Sequence[int]]) -> float:
    """Largest difference between the outputs of two texts together and alone, as a part of the largest output."""
    try:
        together = _outputs(module, texts, pair)
        alone = torch.cat([_outputs(module, texts, [each]) for each in pair])
    except Exception as error:  # whatever a foreign network makes of a text
        raise ModelError(f"{type(module).__name__} fails on a text of {len(pair[0])} tokens: {error}") from error
    return float((together - alone).abs().max() / alone.abs().max().clamp_min(1e-12))


def _outputs(module: nn.Module, texts: Texts, rows: Sequence[Sequence[int]]) -> Tensor:
    logits: Tensor = module(**texts.transform(rows)).logits
    return logits
