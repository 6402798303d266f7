"""Causal language models: the loss of each next token, on the responses of dialogues or on plain texts.

    loss of a row = mean of -log p(token | tokens before it) over the tokens that are trained on
    perplexity = exp(loss over all such tokens of the evaluated set)

The mean loss of a batch is that over its tokens: a row counts as many times as it has such tokens. The model sums the
losses of each row itself (models/token_losses.py), so its outputs are these sums, and no logits.

Answers are generated for a number of test prompts when a run ends, without sampling, and compared with the responses of
the data: by exact match, and by ROUGE-L (Lin 2004, "ROUGE: a package for automatic evaluation of summaries", section
3): the F-measure of the longest common subsequence of words.

Shapes: R rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedelta.errors import InputError
from fedelta.modalities.settings import DialogueSettings
from fedelta.modalities.turns import problem_of
from fedelta.settings import Settings
from fedelta.tasks.base import Answer, Loader, Measure, Sums
from fedelta.tasks.details import Answered, Details, by_client
from fedelta.tasks.targets import ReadTargets, TargetColumn, Targets

LOSS = Measure("test_loss", "loss", higher_is_better=False, unit="nats per token")
PERPLEXITY = Measure("perplexity", "perplexity", higher_is_better=False)
EXACT_MATCH = Measure("exact_match", "exact match", is_fraction=True)
ROUGE_L = Measure("rouge_l", "ROUGE-L", is_fraction=True)

_MOST_NATS = 700.0  # above it, exp is infinite


@dataclass(frozen=True)
class TokenCounts:
    """The number of tokens of each row that are trained on.

    Args:
        values: float32 of shape [N]; 1 each until the rows are tokenised.
    """

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, rows: Tensor) -> Tensor:
        """The counts of `rows`."""
        return self.values[rows]

    def select(self, rows: Tensor) -> TokenCounts:
        """The counts of `rows` alone."""
        return TokenCounts(self.values[rows])

    @property
    def strata(self) -> None:
        """None: dialogues have no kinds."""
        return None


class Language(Settings):
    """Causal language models: section `[task]`.

    Args:
        train_on: "response" for the tokens of the assistant's turns, "all" for every token. Plain texts have no
            prompts: all of their tokens are trained on.
        template: how a dialogue becomes a text: "auto" for the tokenizer's chat template, or the plain one if it has
            none; "plain" for the plain one; or a chat template in Jinja.
        num_answers: how many test prompts are answered when the run ends, spread over the test set; 0 for none.
        answers_every: number of rounds between further answers, and the last round has some too, so that exact match
            and ROUGE-L have curves; 0 for answers only when the run has ended.
        max_new_tokens: of such an answer.
    """

    name: Literal["language"] = "language"
    train_on: Literal["response", "all"] = "response"
    template: str = Field(default="auto", min_length=1)
    num_answers: int = Field(default=64, ge=0)  # our choice: a standard error of 0.06 for an exact match of one half
    answers_every: int = Field(default=0, ge=0)  # our choice: answers take longer than all other measures
    max_new_tokens: int = Field(default=64, ge=1)  # our choice: answers of instruction data sets are mostly shorter
    primary: ClassVar[Measure] = LOSS
    loss: ClassVar[Measure] = LOSS
    measured: ClassVar[Mapping[str, Measure]] = {
        measure.name: measure for measure in (LOSS, PERPLEXITY, EXACT_MATCH, ROUGE_L)
    }
    stratum: ClassVar[tuple[str, str]] = ("kind", "kinds")
    has_classes: ClassVar[bool] = False
    output: ClassVar[tuple[str, str]] = ("loss of a row", "losses of a row")
    column: ClassVar[str] = "responses"

    def loader(self, modality: str) -> Loader | None:
        """A causal language model."""
        if modality != "text":
            return None
        dialogue = DialogueSettings(train_on=self.train_on, template=self.template)
        families = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
        return Loader(families, "AutoModelForCausalLM", "text-generation", "CAUSAL_LM", dialogue)

    def num_outputs(self, class_names: Sequence[str]) -> int:
        """One: the sum of the losses of a row."""
        return 1

    def candidates(self, columns: Mapping[str, str | None]) -> list[str]:
        """None: the columns of dialogues are found by their names (data/dialogues.py)."""
        return []

    def plain(self, column: TargetColumn) -> TargetColumn:
        """The column: dialogues have no classes."""
        return column

    @property
    def automatic(self) -> tuple[str, ...]:
        """None."""
        return ()

    def statistics(self, targets: Targets, class_names: Sequence[str]) -> Sums:
        """None: nothing is left to the training data."""
        return Sums()

    def settled(self, statistics: Sums, class_names: Sequence[str]) -> Language:
        """The task itself."""
        return self

    def targets(self, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
        """One target per row, whose tokens are counted once the model is known."""
        columns = [train] if test is None else [train, test]
        problems = [problem for column in columns for problem in _problems(column)]
        counts = [TokenCounts(torch.ones(len(column.values))) for column in columns]
        return ReadTargets(counts[0], None if test is None else counts[1], (), (), tuple(problems))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of each row over its tokens, in nats."""
        return outputs[:, 0] / targets

    def weights(self, targets: Tensor) -> Tensor | None:
        """The number of tokens of each row."""
        return targets

    def divergences(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The distance of the losses of each row; no tuning method uses it, since language models have no exits."""
        return (outputs - teacher.detach())[:, 0].square()

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """The summed losses of all tokens, and their number."""
        return Sums({LOSS.name: (float(outputs.double().sum()), float(targets.double().sum()))})

    def values(self, sums: Sums) -> dict[str, float]:
        """Loss per token, perplexity, and how good the answers are if there are any."""
        loss = sums.mean(LOSS.name)
        answers = {name: sums.mean(name) for name in (EXACT_MATCH.name, ROUGE_L.name) if name in sums.totals}
        return {LOSS.name: loss, PERPLEXITY.name: math.exp(min(loss, _MOST_NATS)), **answers}

    def details(
        self, answered: Iterable[Answered], class_names: Sequence[str], clients: Tensor | None = None
    ) -> Details:
        """Loss and perplexity, overall and by client; answers are measured by `compared`."""
        batches = [(batch.rows, batch.outputs.cpu(), batch.targets.cpu()) for batch in answered]
        rows, outputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        of_clients = {
            client: {**self.values(self.sums(outputs[places], targets[places])), "num_examples": len(places)}
            for client, places in by_client(rows, clients)
        }
        return Details(self.values(self.sums(outputs, targets)), by_client=of_clients)

    def confidence(self, outputs: Tensor) -> Tensor:
        """Not defined for language models.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a language model gives no confidence, so exits cannot be chosen by confidence.",
            hint="leave the option out.",
        )

    def answers(self, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> list[Answer]:
        """The loss of each text; answers to prompts are generated (inference/generate.py)."""
        return [Surprise(loss, exit) for loss in outputs[:, 0].double().tolist()]

    def records(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float]]:
        """The number of tokens of each row, and their mean loss."""
        losses = self.losses(outputs, targets).double().tolist()
        return [{"tokens": tokens, LOSS.name: loss} for tokens, loss in zip(targets.tolist(), losses, strict=True)]


@dataclass(frozen=True)
class Surprise:
    """The loss of a text.

    Args:
        nats: sum over its tokens.
        exit: None.
    """

    nats: float
    exit: int | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The sum."""
        return (f"{self.nats:.6g}",)


def compared(answers: Sequence[str], responses: Sequence[str]) -> Sums:
    """Exact matches and ROUGE-L of answers, each with the response of the data.

    >>> sums = compared(["The cat sat."], ["the cat sat down"])
    >>> sums.mean("exact_match"), round(sums.mean("rouge_l"), 3)  # 2 * (3/3) (3/4) / (3/3 + 3/4)
    (0.0, 0.857)
    """
    pairs = list(zip(answers, responses, strict=True))
    matches = sum(" ".join(answer.split()) == " ".join(response.split()) for answer, response in pairs)
    return Sums({
        EXACT_MATCH.name: (matches, len(pairs)),
        ROUGE_L.name: (float(np.sum([rouge_l(*pair) for pair in pairs])), len(pairs)),
    })  # fmt: skip


def rouge_l(answer: str, response: str) -> float:
    """The F-measure of the longest common subsequence of words, in lower case and without punctuation, 0 to 1."""
    from rapidfuzz.distance import LCSseq

    words, expected = (re.findall(r"\w+", text.lower()) for text in (answer, response))
    if not words or not expected:
        return float(words == expected)
    return 2 * LCSseq.similarity(words, expected) / (len(words) + len(expected))


def _problems(column: TargetColumn) -> list[str]:
    """What is wrong with the dialogues of a column, each kind with its rows."""
    rows_of: dict[str, list[int]] = {}
    for row, value in enumerate(column.values):
        if (problem := problem_of(value)) is not None:
            rows_of.setdefault(problem, []).append(row)
    return [
        f"{column.what}, {len(rows)} dialogue{'s' * (len(rows) > 1)}: {problem}; "
        f"{'first ' * (len(rows) > 1)}row {rows[0]} (from 0)"
        for problem, rows in rows_of.items()
    ]
