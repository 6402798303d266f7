"""Texts that are given word by word, for tasks with an answer for each word.

A word is answered by its first sub-word: `word_starts` among the inputs says where that is, and -1 for a word that the
model does not read, because the text is cut before it or the row has fewer words than others of the batch.

Shapes: B texts, T tokens, W words, C outputs for a word.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

from fedelta.errors import ModelError, listed, refuse
from fedelta.modalities.base import Certainty, Column, ColumnRule, ModelFiles
from fedelta.modalities.settings import Preparation
from fedelta.modalities.stores import LEAVE_OUT, in_chunks
from fedelta.modalities.text import Texts

if TYPE_CHECKING:
    from fedelta.modalities.base import Example

logger = logging.getLogger("fedelta")

WORD_STARTS = "word_starts"


@dataclass(frozen=True)
class Split:
    """A text as the tokenizer splits it.

    Args:
        ids: of its tokens.
        starts: position of the first token of each word; -1 for a word that is cut off, or has no token.
    """

    ids: Sequence[int] | Tensor
    starts: Sequence[int] | Tensor


@dataclass(frozen=True)
class Words:
    """Turns lists of words into tokens, and says where each word begins.

    Args:
        texts: of the same model.
    """

    texts: Texts

    name: ClassVar = "words"
    singular: ClassVar = "text in words"
    plural: ClassVar = "texts in words"
    columns: ClassVar = ColumnRule({"words": Certainty.SURE}, is_strict=True)
    suffixes: ClassVar[frozenset[str]] = frozenset()
    is_augmented: ClassVar = False
    settings: ClassVar = frozenset({"max_length"})

    def __post_init__(self) -> None:
        if not self.texts.tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {self.texts.tokenizer.name_or_path!r} does not say which word a token belongs to.",
                hint="use a checkpoint with a `tokenizer.json`.",
            )

    @classmethod
    def for_model(cls, model: ModelFiles) -> Words:
        """Words with the tokenizer beside the model; errors as for `Texts.for_model`."""
        return cls(Texts.for_model(model))

    @classmethod
    def card_note(cls, preparation: Preparation) -> str:  # noqa: ARG003 part of the protocol
        """How words and tokens belong together."""
        return "Texts are split into words before they are tokenised; the first token of a word carries its answer."

    def prepared(self, preparation: Preparation) -> Words:
        """A copy with the `max_length` of `preparation`, if it has one."""
        return Words(self.texts.prepared(preparation))

    def fitted(self, column: Column) -> Words:
        """`self`: nothing depends on the training texts."""
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def preparation(self) -> Preparation:
        """The maximum length."""
        return self.texts.preparation

    @property
    def description(self) -> Mapping[str, object]:
        """The tokenizer, the maximum length, and which token of a word answers for it."""
        return {**self.texts.description, "kind": self.name, "answers": "the first token of each word"}

    @property
    def dynamic_axes(self) -> Mapping[int, str]:
        """The batch and the tokens."""
        return self.texts.dynamic_axes

    @property
    def black(self) -> tuple[float, ...]:
        """Unused: texts are not augmented."""
        return self.texts.black

    @cached_property
    def _gap(self) -> str:
        """A space if the tokenizer needs it to split words as in a text, as byte-level ones do; otherwise empty."""
        # findings/transformers_words_of_a_list_grow_together.sh
        tokenizer = self.texts.tokenizer
        in_a_text = tokenizer("a a", add_special_tokens=False)["input_ids"]
        bare, spaced = (
            tokenizer(["a", word], is_split_into_words=True, add_special_tokens=False)["input_ids"]
            for word in ("a", " a")
        )
        return " " if bare != in_a_text == spaced else ""

    def encode(self, texts: Sequence[Sequence[str]]) -> list[Split]:
        """The tokens of each list of words, at most `limit` of them."""
        encoded = self.texts.tokenizer(
            [[*words[:1], *(f"{self._gap}{word}" if word else word for word in words[1:])] for words in texts],
            is_split_into_words=True,
            truncation=True,
            max_length=self.texts.limit,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        splits = []
        for number, words in enumerate(texts):
            starts = [-1] * len(words)
            for position, word in reversed(list(enumerate(encoded.word_ids(number)))):
                if word is not None:
                    starts[word] = position
            splits.append(Split(list(encoded["input_ids"][number]), starts))
        return splits

    def transform(self, raw: Sequence[Split]) -> dict[str, Tensor]:
        """The model's inputs, and `word_starts`, int64 of shape [B, W], for the texts of a batch."""
        inputs = self.texts.transform([split.ids for split in raw])
        longest = inputs["input_ids"].shape[1]
        starts = []
        for split in raw:
            row = torch.as_tensor(split.starts, dtype=torch.int64)
            shift = longest - len(split.ids) if self.texts.padding_side == "left" else 0
            starts.append(torch.where(row < 0, -1, row + shift))
        return inputs | {WORD_STARTS: pad_sequence(starts, batch_first=True, padding_value=-1)}

    def store(self, column: Column, max_memory_mib: int) -> StoredWords:
        """The texts of a column, tokenised once and kept in memory; warns of words that are cut off.

        Raises:
            DataError: rows without a word.
        """
        splits: list[Split] = []
        for rows in column.chunks():
            splits += self.encode([words_of(row) for row in rows])
        empty = [number for number, split in zip(column.numbers.tolist(), splits, strict=True) if not len(split.starts)]
        if empty:
            problem = f"{len(empty)} rows of column {column.name!r} hold no words: rows {listed(empty)}"
            refuse(column.origin, [problem], hint=LEAVE_OUT)
        self._warn_of_cuts(column, splits)
        return StoredWords(_Ragged.of([s.ids for s in splits]), _Ragged.of([s.starts for s in splits]), self)

    def _warn_of_cuts(self, column: Column, splits: Sequence[Split]) -> None:
        lost = [sum(start < 0 for start in split.starts) for split in splits]
        if any(lost):
            logger.warning(
                "%s: %d of %d texts in column %r have more than %d tokens: their last words, %d of %d in all, are not "
                "read and count as answered wrongly; raise `data.max_length`, or split these texts.",
                column.origin, sum(map(bool, lost)), len(splits), column.name, self.texts.limit, sum(lost),
                sum(len(split.starts) for split in splits),
            )  # fmt: skip

    def examples(self, examples: Sequence[Example], batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Inputs of texts, which are split at spaces, or of lists of words."""
        problems = [
            f"input {index}: "
            + ("an empty text" if isinstance(text, str) else f"not a {self.singular} but {type(text).__name__}")
            for index, text in enumerate(examples)
            if not words_of(text)
        ]
        refuse(self.plural, problems)
        texts = [words_of(text) for text in examples]
        return (self.transform(self.encode(chunk)) for chunk in in_chunks(texts, batch_size))

    def export_inputs(self, num: int, length: int, generator: Generator) -> dict[str, Tensor]:
        """As for `Texts`: an exported model answers for every token."""
        return self.texts.export_inputs(num, length, generator)

    def costliest(self) -> dict[str, Tensor]:
        """A text of the maximum length."""
        return self.transform(self.encode([["a"] * self.texts.limit]))


def words_of(value: Any) -> list[str]:
    """The words of a text, or of a list; none if it is something else; Any: any type that a file can hold."""
    if isinstance(value, str):
        return value.split()
    is_list = isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)
    return list(value) if is_list else []


@dataclass(frozen=True)
class _Ragged:
    """Rows of different lengths.

    Args:
        values: int32, those of all rows, concatenated.
        ends: int64 of shape [N], the position after each row's last value.
    """

    values: Tensor
    ends: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | Tensor]) -> _Ragged:
        """These rows."""
        values = torch.tensor([int(value) for row in rows for value in row], dtype=torch.int32)
        return cls(values, torch.tensor([len(row) for row in rows]).cumsum(0))

    def rows(self, numbers: Tensor) -> list[Tensor]:
        """The values of some rows."""
        ends = self.ends[numbers].tolist()
        starts = self.ends[numbers - 1].where(numbers > 0, 0).tolist()
        return [self.values[a:b] for a, b in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class StoredWords:
    """Tokenised texts in memory.

    Args:
        tokens: ids of each text.
        starts: of the words of each text.
        modality: turns them into inputs.
    """

    tokens: _Ragged
    starts: _Ragged
    modality: Words

    def __len__(self) -> int:
        return len(self.tokens.ends)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The inputs of `rows` (int64, one axis), padded to the longest of them."""
        pairs = zip(self.tokens.rows(rows), self.starts.rows(rows), strict=True)
        return self.modality.transform([Split(ids, starts) for ids, starts in pairs])


def at_words(outputs: Tensor, starts: Tensor) -> Tensor:
    """The outputs of words, and whether a word is read: [B, T, C] to [B, W, C + 1], 0 for words that are not.

    Args:
        outputs: of tokens.
        starts: of words, [B, W].
    """
    is_read = (starts >= 0).unsqueeze(-1)
    places = starts.clamp(min=0).unsqueeze(-1).expand(-1, -1, outputs.shape[-1])
    of_words = torch.where(is_read, outputs.gather(1, places), 0.0)
    return torch.cat([of_words, is_read.to(outputs.dtype)], dim=-1)
