"""Texts: `input_ids` and `attention_mask`, by the checkpoint's tokenizer.

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
from fedelta.modalities.stores import LEAVE_OUT, in_chunks

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from fedelta.modalities.base import Example

logger = logging.getLogger("fedelta")

FOREIGN = "use the `tokenizer.json` and `tokenizer_config.json` that were published with the weights."
FILES = "expected `tokenizer.json`, or the vocabulary files of the model family, beside `config.json`."


@dataclass(frozen=True)
class Texts:
    """Turns texts into `input_ids` and `attention_mask` with the checkpoint's tokenizer.

    Args:
        tokenizer: from transformers; has a padding token.
        max_length: maximum number of tokens, special tokens included; longer texts are cut at the end.
        num_positions: maximum number of tokens that the model can take; None if it sets no limit.
        padding_side: side on which the shorter texts of a batch are padded.
        min_length: length to which batches are padded at least; families that pool tokens fail on shorter ones.

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

    def __post_init__(self) -> None:
        if self.tokenizer.pad_token_id is None:
            raise ModelError(
                f"the tokenizer of {self.tokenizer.name_or_path!r} has no padding token, expected one",
                hint="set `pad_token` in the checkpoint's `tokenizer_config.json`, e.g. to its `eos_token`",
            )

    @classmethod
    def for_model(cls, model: ModelFiles) -> Texts:
        """Texts with the tokenizer beside the model.

        Raises:
            ModelError: there is no tokenizer, or it belongs to another model.
        """
        tokenizer = tokenizer_of(model)
        return cls(tokenizer, num_positions=model.num_positions)

    @classmethod
    def card_note(cls, preparation: Preparation) -> str:  # noqa: ARG003 part of the protocol
        """Empty: the tokenizer is the checkpoint's."""
        return ""

    def prepared(self, preparation: Preparation) -> Texts:
        """A copy with the `max_length` of `preparation`, if it has one."""
        if preparation.max_length is None:
            return self
        texts = replace(self, max_length=preparation.max_length)
        if texts.limit < texts.max_length:
            logger.warning(
                "`data.max_length` is %d, but the model takes at most %d tokens; longer texts are cut there.",
                texts.max_length,
                texts.limit,
            )
        return texts

    @property
    def limit(self) -> int:
        """Maximum number of tokens: the least of `max_length` and the limits of tokenizer and model."""
        return min(self.max_length, self.tokenizer.model_max_length, self.num_positions or self.max_length)

    def fitted(self, column: Column) -> Texts:
        """`self`: nothing depends on the training texts."""
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def preparation(self) -> Preparation:
        """The maximum length."""
        return Preparation(max_length=self.max_length)

    @property
    def description(self) -> Mapping[str, object]:
        """The tokenizer and the maximum length."""
        return {"kind": self.name, "max_length": self.max_length, "tokenizer": self.tokenizer.name_or_path}

    @property
    def dynamic_axes(self) -> Mapping[int, str]:
        """The batch and the tokens."""
        return {0: "batch", 1: "sequence"}

    @property
    def black(self) -> tuple[float, ...]:
        """Unused: texts are not augmented."""
        return (0.0,)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, at most `limit` of them."""
        encoded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.limit,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return [list(ids) for ids in encoded["input_ids"]]

    def transform(self, raw: Sequence[Sequence[int] | Tensor]) -> dict[str, Tensor]:
        """The model's inputs for encoded texts.

        Args:
            raw: the token ids of each of B texts.

        Returns:
            `input_ids` and `attention_mask` (1 at tokens, 0 at padding), int64 of shape [B, T], where T is the length
            of the longest text or `min_length`; also `token_type_ids`, all 0, if the tokenizer uses them.
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
        """The texts of a column, tokenised once and kept in memory.

        Raises:
            DataError: rows without text or without a single token.
        """
        chunks: list[Tensor] = []
        lengths: list[int] = []
        for texts in column.chunks():
            # A missing text gets no tokens and is reported below.
            encoded = self.encode([text or "" for text in texts])
            encoded = [[] if text is None else ids for text, ids in zip(texts, encoded, strict=True)]
            lengths += [len(ids) for ids in encoded]
            chunks.append(torch.tensor([token for ids in encoded for token in ids], dtype=torch.int32))
        empty = [number for number, length in zip(column.numbers.tolist(), lengths, strict=True) if length == 0]
        if empty:
            problem = f"{len(empty)} rows of column {column.name!r} hold no text: rows {listed(empty)}"
            refuse(column.origin, [problem], hint=LEAVE_OUT)
        return StoredTexts(torch.cat(chunks), torch.tensor(lengths).cumsum(0), self)

    def examples(self, examples: Sequence[Example], batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Inputs of texts."""
        problems = [
            f"input {index}: " + ("an empty text" if isinstance(text, str) else f"not a text but {type(text).__name__}")
            for index, text in enumerate(examples)
            if not isinstance(text, str) or not text.strip()
        ]
        refuse(self.plural, problems)
        texts = [text for text in examples if isinstance(text, str)]
        return (self.transform(self.encode(chunk)) for chunk in in_chunks(texts, batch_size))

    def export_inputs(self, num: int, length: int, generator: Generator) -> dict[str, Tensor]:
        """Random tokens, with the end-of-text token if the tokenizer has one; shorter texts are padded."""
        longest = min(length, self.limit)
        lengths = [max(1, longest - index) for index in range(num)]
        special, end = set(self.tokenizer.all_special_ids), self.tokenizer.eos_token_id
        words = torch.tensor([number for number in range(len(self.tokenizer)) if number not in special])
        tokens = words[torch.randint(len(words), (num, longest), generator=generator)]
        rows = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        return self.transform(rows if end is None else [torch.cat([row[:-1], torch.tensor([end])]) for row in rows])

    def costliest(self) -> dict[str, Tensor]:
        """A text of the maximum length."""
        return self.transform(self.encode(["a " * self.limit]))


@dataclass(frozen=True)
class StoredTexts:
    """Tokenised texts in memory.

    Args:
        token_ids: int32, the tokens of all texts, concatenated.
        ends: int64 of shape [N], the position after each text's last token.
        modality: turns token ids into inputs.
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


def tokenizer_of(model: ModelFiles) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, with a padding token if the model or the tokenizer has one that can serve.

    Raises:
        ModelError: there is none, or it belongs to another model.
    """
    from transformers import AutoTokenizer

    place = model.place
    if place is None:
        raise ModelError("a text model needs a tokenizer: set `model.source`, not `model.architecture` alone.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except KeyError as error:
        problem = f"no tokenizer can be loaded from {place!r}: a tokenizer file lacks the key {error}."
        raise ModelError(problem, hint=FILES) from error
    except Exception as error:  # transformers raises many types of errors for damaged or foreign files
        raise ModelError(f"no tokenizer can be loaded from {place!r}: {error}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # Without files, transformers makes a tokenizer of special tokens alone: every word would be unknown.
        raise ModelError(f"no tokenizer can be loaded from {place!r}: its vocabulary is empty.", hint=FILES)
    config = model.config.get_text_config()
    _set_padding(tokenizer, config)
    _check_tokenizer(place, tokenizer, config)
    return tokenizer


def _set_padding(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Gives a tokenizer that lacks a padding token the model's one or, as is usual, the end-of-text token."""
    if tokenizer.pad_token_id is not None:
        return
    number = config.pad_token_id
    is_valid = isinstance(number, int) and 0 <= number < len(tokenizer)
    model_token = tokenizer.convert_ids_to_tokens(number) if is_valid else None
    token = model_token or tokenizer.eos_token
    if token is not None:
        tokenizer.pad_token = token
    if number is not None and model_token is None:
        config.pad_token_id = None  # invalid, such as the -1 of the first Llama


def _check_tokenizer(place: str, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Refuses a tokenizer whose token ids exceed the model's vocabulary, and warns if they leave much of it unused."""
    largest_id = max(tokenizer.get_vocab().values())
    if "vocab_size" not in config.to_dict():
        return  # CANINE hashes characters
    if largest_id >= config.vocab_size:
        raise ModelError(
            f"the tokenizer in {place!r} does not belong to the model: its largest token id is {largest_id}, but the "
            f"model has only {config.vocab_size} embeddings, with ids from 0.",
            hint=FOREIGN,
        )
    if largest_id < 0.9 * config.vocab_size:
        logger.warning(
            "the tokenizer in %r has %s tokens, the model %s: check that it belongs to the model.",
            place,
            f"{largest_id + 1:,}",
            f"{config.vocab_size:,}",
        )
