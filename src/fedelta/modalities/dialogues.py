"""Dialogues for language models: `input_ids`, `attention_mask`, and `labels` on what is trained.

A prompt and its response are tokenised together, because apart the tokens at their border differ; which tokens belong
to a response follows from their place in the text. A dialogue that is too long loses the beginning of its prompt. Only
a response that leaves no room for a prompt is cut itself, at the end, and that is told.

Shapes: N rows, B rows of a batch, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from fedelta.errors import ModelError, refuse
from fedelta.modalities.base import Certainty, Column, ColumnRule, ModelFiles
from fedelta.modalities.settings import DialogueSettings, Preparation
from fedelta.modalities.stores import LEAVE_OUT, REPLACE, in_chunks
from fedelta.modalities.text import tokenizer_of
from fedelta.modalities.turns import Messages, Template, ends_itself, problem_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedelta.modalities.base import Example

logger = logging.getLogger("fedelta")

# Batches are padded to a multiple of so many tokens, so that kernels and allocators meet few different lengths.
NOTHING_LEFT = (
    "this is so in every row: raise `data.max_length`, or check whether `task.template` writes the responses."
)
BUCKET = 8
_KEPT = 4  # a response may take all but a quarter of the tokens from its prompt
IGNORED = -100  # the label of a token that is not trained on, as in transformers


@dataclass(frozen=True)
class Encoded:
    """The tokens of a dialogue.

    Args:
        ids: of the tokens.
        is_target: whether each token is trained on.
        num_dropped: tokens of the prompt that were left out.
        num_cut: tokens of the response that were left out.
    """

    ids: list[int]
    is_target: list[bool]
    num_dropped: int = 0
    num_cut: int = 0


@dataclass(frozen=True)
class Dialogues:
    """Turns dialogues into tokens with the checkpoint's tokenizer.

    Args:
        tokenizer: from transformers, with offsets.
        dialogue: what is trained on, and the template.
        max_length: maximum number of tokens.
        num_positions: maximum number of tokens that the model can take; None if it sets no limit.
        source: of the template that is used whatever `dialogue` says; None for its own.
    """

    tokenizer: PreTrainedTokenizerBase
    dialogue: DialogueSettings = field(default_factory=DialogueSettings)
    max_length: int = 128
    num_positions: int | None = None
    source: str | None = None

    name: ClassVar = "text"
    singular: ClassVar = "dialogue"
    plural: ClassVar = "dialogues"
    columns: ClassVar = ColumnRule({"text": Certainty.FALLBACK})
    suffixes: ClassVar[frozenset[str]] = frozenset()
    is_augmented: ClassVar = False
    settings: ClassVar = frozenset({"max_length"})

    @classmethod
    def for_model(cls, model: ModelFiles, dialogue: DialogueSettings = DialogueSettings()) -> Dialogues:  # noqa: B008
        """Dialogues with the tokenizer beside the model.

        Raises:
            ModelError: there is no tokenizer, it belongs to another model, or it gives no offsets.
        """
        tokenizer = tokenizer_of(model)
        if not tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path!r} does not say where its tokens are in a text, so the "
                "tokens of a response are unknown.",
                hint="use a checkpoint with a `tokenizer.json`.",
            )
        return cls(tokenizer, dialogue, num_positions=model.num_positions)

    @classmethod
    def card_note(cls, preparation: Preparation) -> str:
        """Where the template is."""
        return "" if preparation.template is None else "Dialogues are written by the template `chat_template.jinja`."

    def prepared(self, preparation: Preparation) -> Dialogues:
        """A copy with the `max_length` and the template of `preparation`, where it has them."""
        return replace(
            self,
            max_length=preparation.max_length or self.max_length,
            source=self.source if preparation.template is None else preparation.template,
        )

    @cached_property
    def template(self) -> Template:
        """The template in use.

        Raises:
            ModelError: it cannot be used.
        """
        return Template.of(self.tokenizer, self.source or self.dialogue.template)

    @property
    def limit(self) -> int:
        """Maximum number of tokens: the least of `max_length` and the limits of tokenizer and model."""
        return min(self.max_length, self.tokenizer.model_max_length, self.num_positions or self.max_length)

    @property
    def pad(self) -> int:
        """The id that fills up rows; which one does not matter, since the mask leaves it out."""
        return int(self.tokenizer.pad_token_id or 0)

    def fitted(self, column: Column) -> Dialogues:
        """`self`: nothing depends on the training texts."""
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def preparation(self) -> Preparation:
        """The maximum length and the template."""
        return Preparation(max_length=self.max_length, template=self.template.source)

    @property
    def description(self) -> Mapping[str, object]:
        """The tokenizer, the maximum length and the template."""
        return {
            "kind": "dialogue",
            "max_length": self.max_length,
            "tokenizer": self.tokenizer.name_or_path,
            "template": self.template.source,
        }

    @property
    def dynamic_axes(self) -> Mapping[int, str]:
        """The batch and the tokens."""
        return {0: "batch", 1: "sequence"}

    @property
    def black(self) -> tuple[float, ...]:
        """Unused: dialogues are not augmented."""
        return (0.0,)

    @property
    def context(self) -> int:
        """The most tokens that the model can take, of a prompt and its answer together."""
        longest: int = self.tokenizer.model_max_length  # a very large number where the tokenizer has no limit
        return longest if self.num_positions is None else min(self.num_positions, longest)

    def prompt(self, messages: Messages) -> list[int]:
        """The tokens of a dialogue up to where the next answer begins."""
        return list(self.tokenizer(self.template.prompt(messages), add_special_tokens=False)["input_ids"])

    def encode(self, values: Sequence[Any]) -> list[Encoded]:  # Any: any type that a file can hold
        """The tokens of dialogues without problems."""
        written = self.template.written(values)
        tokens = self.tokenizer(
            [text.text for text in written],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return [
            self._encoded(list(ids), [self._is_target(place, text.answers) for place in places])
            for ids, places, text in zip(tokens["input_ids"], tokens["offset_mapping"], written, strict=True)
        ]

    def _encoded(self, ids: list[int], is_target: list[bool]) -> Encoded:
        return _shortened(ids, is_target, self.limit, self._num_fixed(ids))

    def _is_target(self, place: tuple[int, int], answers: Sequence[tuple[int, int]]) -> bool:
        if self.dialogue.train_on == "all":
            return True
        # A token across the border is the answer's: a model that continues the prompt has to give it.
        return any(place[1] > start and place[0] < end for start, end in answers)

    def _num_fixed(self, ids: Sequence[int]) -> int:
        """How many tokens at the beginning are never left out: one if it is the token that texts begin with."""
        return int(bool(ids) and bool(self.template.bos) and ids[0] == self.tokenizer.bos_token_id)

    def transform(self, raw: Sequence[Encoded]) -> dict[str, Tensor]:
        """The model's inputs for encoded dialogues; see `StoredDialogues.fetch`."""
        stored = StoredDialogues.of(raw, self)
        return stored.fetch(torch.arange(len(raw)))

    def store(self, column: Column, max_memory_mib: int) -> StoredDialogues:
        """The dialogues of a column, tokenised once and kept in memory.

        Raises:
            DataError: rows that hold no dialogue, or one without a token to train on.
        """
        encoded: list[Encoded] = []
        problems: list[str] = []
        num_ended = 0
        for values in column.chunks():
            numbers = column.numbers[len(encoded) : len(encoded) + len(values)].tolist()
            wrong = {number: problem_of(value) for number, value in zip(numbers, values, strict=True)}
            problems += [f"row {number} {problem}" for number, problem in wrong.items() if problem]
            encoded += [Encoded([], [])] * len(values) if problems else self.encode(values)
            num_ended += 0 if problems else sum(map(ends_itself, values))
        refuse(column.origin, problems, hint=LEAVE_OUT)
        empty = [int(column.numbers[row]) for row, each in enumerate(encoded) if not any(each.is_target[1:])]
        hint = NOTHING_LEFT if len(empty) == len(encoded) else REPLACE
        refuse(column.origin, [f"row {number} has no token to train on" for number in empty], hint=hint)
        self._tell(column, encoded, num_ended)
        return StoredDialogues.of(encoded, self)

    def _tell(self, column: Column, encoded: Sequence[Encoded], num_ended: int) -> None:
        """Logs how many rows were too long, and how many bring a token that ends them."""
        cut = [each for each in encoded if each.num_cut]
        dropped = sum(each.num_dropped > 0 for each in encoded)
        where = f"{column.origin}: of {len(encoded):,} rows"
        limit = f"more than {self.limit} tokens (`data.max_length`)" if self.limit == self.max_length else (
            f"more than the {self.limit} tokens that the model can take"
        )  # fmt: skip
        if num_ended:
            logger.warning(
                "%s, %s end in the token of some model that ends a text; it is left out, since the template writes "
                "that of this model.", where, f"{num_ended:,}",
            )  # fmt: skip
        if dropped:
            logger.warning("%s, %s have %s; the beginning of their prompts is left out.", where, f"{dropped:,}", limit)
        if cut:
            logger.warning(
                "%s, %s have responses so long that their end is cut, %s tokens in all: they have %s.",
                where, f"{len(cut):,}", f"{sum(each.num_cut for each in cut):,}", limit,
            )  # fmt: skip

    def examples(self, examples: Sequence[Example], batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Inputs of prompts or plain texts, with every token as a target."""
        problems = [
            f"input {index}: {'an empty text' if isinstance(text, str) else f'no text but {type(text).__name__}'}"
            for index, text in enumerate(examples)
            if not isinstance(text, str) or not text.strip()
        ]
        refuse(self.plural, problems)
        return (self.transform(self.encode(chunk)) for chunk in in_chunks(list(examples), batch_size))

    def export_inputs(self, num: int, length: int, generator: Generator) -> dict[str, Tensor]:
        """Random tokens, of which all but the first are targets; shorter ones are padded."""
        longest = max(2, min(length, self.limit))
        ids = torch.randint(len(self.tokenizer), (num, longest), generator=generator).tolist()
        lengths = [max(2, longest - index) for index in range(num)]
        return self.transform([
            Encoded(row[:size], [True] * size) for row, size in zip(ids, lengths, strict=True)
        ])  # fmt: skip

    def costliest(self) -> dict[str, Tensor]:
        """A dialogue of the maximum length, all of it trained on."""
        return self.transform([Encoded([self.pad] * self.limit, [True] * self.limit)])


def _shortened(ids: list[int], is_target: list[bool], limit: int, num_fixed: int) -> Encoded:
    """At most `limit` tokens: without the beginning of the prompt, and at last without the end of the response.

    Args:
        ids: of all tokens.
        is_target: whether each is trained on.
        limit: the largest number of tokens.
        num_fixed: number of tokens at the beginning that stay.
    """
    excess = len(ids) - limit
    if excess <= 0:
        return Encoded(ids, is_target)
    begin = _begin_of_last(is_target)
    # A prompt without an answer gives way as far as need be.
    kept = max(1, limit // _KEPT) if begin < len(ids) else 0
    droppable = max(0, begin - num_fixed - kept)
    num_dropped = min(excess, droppable)
    places = [*range(num_fixed), *range(num_fixed + num_dropped, len(ids))][:limit]
    return Encoded([ids[place] for place in places], [is_target[place] for place in places],
                   num_dropped, excess - num_dropped)  # fmt: skip


def _begin_of_last(is_target: Sequence[bool]) -> int:
    """The first token of the last answer; the number of tokens if nothing is trained on."""
    begins = [place for place, now in enumerate(is_target) if now and not (place and is_target[place - 1])]
    return begins[-1] if begins else len(is_target)


@dataclass(frozen=True)
class StoredDialogues:
    """Tokenised dialogues in memory.

    Args:
        token_ids: int32, the tokens of all dialogues, concatenated.
        is_target: bool, whether each of these is trained on.
        ends: int64 of shape [N], the position after each dialogue's last token.
        modality: pads batches.
    """

    token_ids: Tensor
    is_target: Tensor
    ends: Tensor
    modality: Dialogues
    kind: ClassVar[Literal["dialogues"]] = "dialogues"

    @classmethod
    def of(cls, encoded: Sequence[Encoded], modality: Dialogues) -> StoredDialogues:
        """These dialogues."""
        lengths = torch.tensor([len(each.ids) for each in encoded], dtype=torch.int64)
        return cls(
            torch.tensor([token for each in encoded for token in each.ids], dtype=torch.int32),
            torch.tensor([now for each in encoded for now in each.is_target], dtype=torch.bool),
            lengths.cumsum(0),
            modality,
        )

    def __len__(self) -> int:
        return len(self.ends)

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The model's inputs for `rows` (int64, one axis).

        Returns:
            `input_ids`, `attention_mask` (1 at tokens, 0 at padding, which follows the tokens) and `labels` (the token
            where it is trained on, else -100), int64 of shape [B, T]; T is the length of the longest row, rounded up to
            a multiple of `BUCKET`.
        """
        ends_B1 = self.ends[rows].unsqueeze(1)
        starts_B1 = self.ends[rows - 1].where(rows > 0, 0).unsqueeze(1)
        longest = int((ends_B1 - starts_B1).max())
        length = max(longest, min(-(-longest // BUCKET) * BUCKET, self.modality.limit))
        places_BT = starts_B1 + torch.arange(length)
        is_token_BT = places_BT < ends_B1
        places_BT = places_BT.clamp_max(len(self.token_ids) - 1)
        ids_BT = self.token_ids[places_BT].long()
        return {
            "input_ids": ids_BT.where(is_token_BT, self.modality.pad),
            "attention_mask": is_token_BT.long(),
            "labels": ids_BT.where(is_token_BT & self.is_target[places_BT], IGNORED),
        }

    @cached_property
    def num_tokens(self) -> Tensor:
        """The number of tokens of each row, int64 of shape [N]."""
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    @cached_property
    def num_targets(self) -> Tensor:
        """The number of tokens of each row that are trained on, int64 of shape [N]; the first is not predicted."""
        starts = self.ends.roll(1)
        starts[0] = 0
        is_target = self.is_target.clone()
        is_target[starts] = False
        before = torch.cat([torch.zeros(1, dtype=torch.int64), is_target.long().cumsum(0)])
        return before[self.ends] - before[starts]
