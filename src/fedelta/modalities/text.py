"""Texts: `input_ids` and `attention_mask`, by a checkpoint's own tokenizer.

Shapes: N rows, B rows of a batch, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

from fedelta.errors import ModelError, listed, refuse
from fedelta.modalities.base import Certainty, Column, ColumnRule, ModelFiles
from fedelta.modalities.settings import Preparation
from fedelta.modalities.stores import REPLACE, in_chunks

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from fedelta.modalities.base import Example

logger = logging.getLogger("fedelta")

FOREIGN = "take `tokenizer.json` and `tokenizer_config.json` from the place that the weights are from."


@dataclass(frozen=True)
class Texts:
    """Texts to `input_ids` and `attention_mask`, by a checkpoint's own tokenizer.

    Args:
        tokenizer: from transformers; has a padding token.
        max_length: most tokens of a text, special tokens included; what is longer is cut at the end.
        num_positions: most tokens that the model has positions for; None where it has none.
        padding_side: where a text that is shorter than others of its batch is filled up.
        min_length: fewest tokens of a batch, padding included; a family that pools tokens fails on fewer.

    Raises:
        ModelError: the tokenizer has no padding token.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int = 128  # the text classification example of transformers
    num_positions: int | None = None
    padding_side: Literal["right", "left"] = "right"
    min_length: int = 0

    name: ClassVar = "text"
    singular: ClassVar = "text"
    plural: ClassVar = "texts"
    columns: ClassVar = ColumnRule({"text": Certainty.FALLBACK}, is_strict=True)
    suffixes: ClassVar[frozenset[str]] = frozenset()
    is_augmented: ClassVar = False
    settings: ClassVar = frozenset({"max_length"})
    card_note: ClassVar = ""

    def __post_init__(self) -> None:
        if self.tokenizer.pad_token_id is None:
            raise ModelError(
                f"the tokenizer of {self.tokenizer.name_or_path!r} has no padding token, expected one",
                hint="set `pad_token` in the checkpoint's `tokenizer_config.json`, e.g. to its `eos_token`",
            )

    @classmethod
    def for_model(cls, model: ModelFiles) -> Texts:
        """With the tokenizer beside the model.

        Raises:
            ModelError: there is none, or it belongs to another model.
        """
        from transformers import AutoTokenizer

        place = model.place
        if place is None:
            raise ModelError("a text model needs a tokenizer: give `model.source`, not `model.architecture` alone.")
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except Exception as error:  # transformers raises nearly anything for damaged or foreign files
            raise ModelError(f"no tokenizer can be loaded from {place!r}: {error}") from error
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            # Without files, transformers makes a tokenizer of special tokens alone: every word would be unknown.
            raise ModelError(
                f"no tokenizer can be loaded from {place!r}: its vocabulary is empty.",
                hint="expected `tokenizer.json`, or the vocabulary files of the family, beside `config.json`.",
            )
        config = model.config.get_text_config()
        _set_padding(tokenizer, config)
        _check_tokenizer(place, tokenizer, config)
        return cls(tokenizer, num_positions=model.num_positions)

    def prepared(self, preparation: Preparation) -> Texts:
        """The same with the `max_length` that is given."""
        if preparation.max_length is None:
            return self
        texts = replace(self, max_length=preparation.max_length)
        if texts.limit < texts.max_length:
            logger.warning(
                "`data.max_length` is %d, but the model takes %d tokens: texts are cut there.",
                texts.max_length,
                texts.limit,
            )
        return texts

    @property
    def limit(self) -> int:
        """Most tokens of a text: `max_length`, or what the tokenizer or the model have room for."""
        return min(self.max_length, self.tokenizer.model_max_length, self.num_positions or self.max_length)

    @property
    def preparation(self) -> Preparation:
        """The greatest length."""
        return Preparation(max_length=self.max_length)

    @property
    def description(self) -> Mapping[str, object]:
        """The tokenizer and the greatest length."""
        return {"kind": self.name, "max_length": self.max_length, "tokenizer": self.tokenizer.name_or_path}

    @property
    def dynamic_axes(self) -> Mapping[int, str]:
        """The batch and the tokens."""
        return {0: "batch", 1: "sequence"}

    @property
    def black(self) -> tuple[float, ...]:
        """Texts have no edge to which anything is added; the engine refuses to augment them."""
        return (0.0,)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, at most `max_length` and at most what the model has positions for."""
        encoded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.limit,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return [list(ids) for ids in encoded["input_ids"]]

    def transform(self, raw: Sequence[Sequence[int] | Tensor]) -> dict[str, Tensor]:
        """The model's arguments for encoded texts.

        Args:
            raw: B texts, each the ids of its tokens.

        Returns:
            `input_ids` and `attention_mask` (1 at tokens, 0 at padding), int64 of shape [B, T] with T the
            longest of these texts, or `min_length`, padded at `padding_side`; `token_type_ids`, all 0, where the
            tokenizer has them.
        """
        rows = [torch.as_tensor(ids, dtype=torch.int64) for ids in raw]
        batch = {
            "input_ids": self._padded(rows, float(self.tokenizer.pad_token_id)),
            "attention_mask": self._padded([torch.ones_like(row) for row in rows], 0.0),
        }
        if "token_type_ids" in self.tokenizer.model_input_names:
            batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        return batch

    def _padded(self, rows: list[Tensor], value: float) -> Tensor:
        shortest = torch.zeros(self.min_length, dtype=torch.int64)
        return pad_sequence([*rows, shortest], True, value, self.padding_side)[:-1]

    def store(self, column: Column, max_memory_mib: int) -> StoredTexts:
        """The texts of a column, tokenised once; they always fit.

        Raises:
            DataError: rows without text or without a single token.
        """
        chunks: list[Tensor] = []
        lengths: list[int] = []
        for texts in column.chunks():
            # A missing text has no tokens and is named below.
            encoded = self.encode([text or "" for text in texts])
            encoded = [[] if text is None else ids for text, ids in zip(texts, encoded, strict=True)]
            lengths += [len(ids) for ids in encoded]
            chunks.append(torch.tensor([token for ids in encoded for token in ids], dtype=torch.int32))
        empty = [number for number, length in zip(column.numbers.tolist(), lengths, strict=True) if length == 0]
        if empty:
            problem = f"{len(empty)} rows of column {column.name!r} hold no text: rows {listed(empty)}"
            refuse(column.origin, [problem], hint=REPLACE)
        return StoredTexts(torch.cat(chunks), torch.tensor(lengths).cumsum(0), self)

    def examples(self, examples: Sequence[Example], batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Inputs of texts."""
        refuse(
            self.plural,
            [
                f"input {index}: {'an empty text' if isinstance(text, str) else f'no text but {type(text).__name__}'}"
                for index, text in enumerate(examples)
                if not isinstance(text, str) or not text.strip()
            ],
        )
        texts = [text for text in examples if isinstance(text, str)]
        return (self.transform(self.encode(chunk)) for chunk in in_chunks(texts, batch_size))

    def export_inputs(self, num: int, length: int, generator: Generator) -> dict[str, Tensor]:
        """Random tokens, and the end of a text where the tokenizer has one; some texts are padded."""
        longest = min(length, self.limit)
        lengths = [max(1, longest - index) for index in range(num)]
        special, end = set(self.tokenizer.all_special_ids), self.tokenizer.eos_token_id
        words = torch.tensor([number for number in range(len(self.tokenizer)) if number not in special])
        tokens = words[torch.randint(len(words), (num, longest), generator=generator)]
        rows = [row[:each] for row, each in zip(tokens, lengths, strict=True)]
        return self.transform(rows if end is None else [torch.cat([row[:-1], torch.tensor([end])]) for row in rows])

    def costliest(self) -> dict[str, Tensor]:
        """A text of the greatest length."""
        return self.transform(self.encode(["a " * self.limit]))


@dataclass(frozen=True)
class StoredTexts:
    """Tokenised texts in memory.

    Args:
        token_ids: int32, the tokens of all texts one after the other.
        ends: int64 of shape [N], the place behind each text's last token.
        modality: makes inputs of them.
    """

    token_ids: Tensor
    ends: Tensor
    modality: Texts

    def __len__(self) -> int:
        return len(self.ends)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of `rows` (int64, one axis), padded to the longest of them."""
        ends = self.ends[rows].tolist()
        starts = self.ends[rows - 1].where(rows > 0, 0).tolist()
        return self.modality.transform([self.token_ids[a:b] for a, b in zip(starts, ends, strict=True)])


def _set_padding(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Gives a tokenizer without a padding token that of the model, or else the end of a text, as is usual."""
    if tokenizer.pad_token_id is not None:
        return
    number = config.pad_token_id
    own = tokenizer.convert_ids_to_tokens(number) if isinstance(number, int) and 0 <= number < len(tokenizer) else None
    token = own or tokenizer.eos_token
    if token is not None:
        tokenizer.pad_token = token
    if number is not None and own is None:
        config.pad_token_id = None  # such as the -1 of the first Llama


def _check_tokenizer(place: str, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Refuses a tokenizer whose numbers mean other tokens, or none, to the model: it would train on noise."""
    largest_id = max(tokenizer.get_vocab().values())
    if "vocab_size" not in config.to_dict():
        return  # CANINE hashes characters
    if largest_id >= config.vocab_size:
        raise ModelError(
            f"the tokenizer in {place!r} does not belong to the model: its largest token is number {largest_id}, "
            f"the model has embeddings for {config.vocab_size}, numbered from 0.",
            hint=FOREIGN,
        )
    if largest_id < 0.9 * config.vocab_size:
        logger.warning(
            "the tokenizer in %r has %s tokens, the model %s: is it the model's own?",
            place,
            f"{largest_id + 1:,}",
            f"{config.vocab_size:,}",
        )
