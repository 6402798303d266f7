"""Token labels: a tag for each word of a text, such as the names in it; F1 of spans as the primary measure.

Outputs are [R, W, C + 1]: logits of the tags for each word and, last, 1 if the model reads the word and 0 if not. Words
that it does not read are answered with `O`, and add nothing to the loss.

    loss of a row = sum over its words of the cross-entropy / number of its words

Rows count by their words in the mean of a batch, so that it is the mean over words.

Shapes: R rows, W words, C tags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedelta.errors import InputError
from fedelta.settings import Settings
from fedelta.tasks.base import Answer, Loader, Measure, Sums
from fedelta.tasks.details import Answered, Details, Values
from fedelta.tasks.scores import F1, PRECISION, RECALL
from fedelta.tasks.tags import NO_TAG, OUTSIDE, Span, read_tags, spans
from fedelta.tasks.targets import ReadTargets, TargetColumn, Targets

ENTITY_F1 = Measure("entity_f1", "entity F1", is_fraction=True)
ENTITY_PRECISION = Measure("entity_precision", "entity precision", is_fraction=True)
ENTITY_RECALL = Measure("entity_recall", "entity recall", is_fraction=True)
TAG_ACCURACY = Measure("tag_accuracy", "tag accuracy", is_fraction=True)
LOSS = Measure("loss_nats", "loss", higher_is_better=False, unit="nats per word")

_TOKENS = Loader(
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForTokenClassification",
    "token-classification",
    "TOKEN_CLS",
)


@dataclass(frozen=True)
class Tagged:
    """The predicted tags of one text.

    Args:
        tags: of the words that the model reads.
        spans: what the tags mark.
        exit: number of the exit that answered, from 1; None for a model without exits.
    """

    tags: tuple[str, ...]
    spans: tuple[Span, ...]
    exit: int | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """Each span: its kind and the numbers of its words, from 1; and the tags."""
        found = (f"{span.kind} {span.start + 1}-{span.end}" for span in self.spans)
        return ", ".join(found) or "(none)", " ".join(self.tags)


class Tokens(Settings):
    """Token labels: section `[task]`.

    Args:
        tags: in label order; found from the training data.
    """

    name: Literal["tokens"] = "tokens"
    tags: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    primary: ClassVar[Measure] = ENTITY_F1
    loss: ClassVar[Measure] = LOSS
    measured: ClassVar[Mapping[str, Measure]] = {
        measure.name: measure
        for measure in (ENTITY_F1, ENTITY_PRECISION, ENTITY_RECALL, TAG_ACCURACY, LOSS, PRECISION, RECALL, F1)
    }
    stratum: ClassVar[tuple[str, str]] = ("rarest tag", "rarest tags")
    output: ClassVar[tuple[str, str]] = ("tag", "tags")
    has_classes: ClassVar[bool] = True
    column: ClassVar[str] = "lists of class labels, or lists named 'tags', 'ner_tags' or 'labels'"

    def loader(self, modality: str) -> Loader | None:
        """A token classifier, for texts that are given word by word."""
        return _TOKENS if modality == "words" else None

    def num_outputs(self, class_names: Sequence[str]) -> int:
        """A logit for each tag."""
        return len(class_names)

    def candidates(self, columns: Mapping[str, str | None]) -> list[str]:
        """The only column of lists of class labels, else the lists with a usual name."""
        of_classes = [name for name, kind in columns.items() if kind == "lists of classes"]
        usual = [name for name in ("tags", "ner_tags", "labels") if str(columns.get(name)).startswith("lists of")]
        return of_classes if len(of_classes) == 1 else usual

    def plain(self, column: TargetColumn) -> TargetColumn:
        """The column itself."""
        return column

    @property
    def automatic(self) -> tuple[str, ...]:
        """The tags, if they are not known yet."""
        return ("tags",) if self.tags is None else ()

    def statistics(self, targets: Targets, class_names: Sequence[str]) -> Sums:
        """None: the tags are known by name."""
        return Sums()

    def settled(self, statistics: Sums, class_names: Sequence[str]) -> Tokens:
        """With the tags, from which spans are read."""
        return self.model_copy(update={"tags": tuple(class_names)})

    def targets(self, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
        """The tags of each row; see `read_tags`."""
        return read_tags(train, test)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each row, in nats: summed over the words that are read, divided by all its words."""
        return self._word_losses(outputs, targets).sum(1) / (targets != NO_TAG).sum(1).clamp(min=1)

    def weights(self, targets: Tensor) -> Tensor | None:
        """The number of words of each row."""
        return (targets != NO_TAG).sum(1).float()

    def divergences(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """KL(p_teacher || p) of each row, in nats; the mean over the words that are read."""
        log_p, log_teacher = (functional.log_softmax(each[..., :-1], dim=-1) for each in (outputs, teacher.detach()))
        distances_RW = (log_teacher.exp() * (log_teacher - log_p)).sum(-1)
        is_read = outputs[..., -1].detach() > 0
        return torch.where(is_read, distances_RW, 0.0).sum(1) / is_read.sum(1).clamp(min=1)

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """The loss and right tags by words; spans that are right, answered and labelled."""
        num_words, num_rows = float((targets != NO_TAG).sum()), float(len(targets))
        loss = float(self._word_losses(outputs, targets).double().sum())
        truths, answers = self._tags(outputs, targets)
        num_right = sum(
            a == b for row, of_row in zip(truths, answers, strict=True) for a, b in zip(row, of_row, strict=True)
        )
        right, answered, labelled = _matched(truths, answers)
        return Sums({
            LOSS.name: (loss, num_words),
            TAG_ACCURACY.name: (float(num_right), num_words),
            "spans right": (float(right.total()), num_rows),
            "spans answered": (float(answered.total()), num_rows),
            "spans labelled": (float(labelled.total()), num_rows),
        })  # fmt: skip

    def values(self, sums: Sums) -> dict[str, float]:
        """F1, precision and recall of spans, the share of right tags, and the loss; a fraction of nothing is 0."""
        right, answered, labelled = (sums.totals[f"spans {part}"][0] for part in ("right", "answered", "labelled"))
        return {
            ENTITY_F1.name: _fraction(2 * right, answered + labelled),
            ENTITY_PRECISION.name: _fraction(right, answered),
            ENTITY_RECALL.name: _fraction(right, labelled),
            TAG_ACCURACY.name: sums.mean(TAG_ACCURACY.name),
            LOSS.name: sums.mean(LOSS.name),
        }

    def details(
        self, answered: Iterable[Answered], class_names: Sequence[str], clients: Tensor | None = None
    ) -> Details:
        """The measures of an evaluation, by kind of span and by client; what is not defined is left out or None."""
        total, of_clients, rows_of = Sums(), dict[int, Sums](), Counter[int]()
        counts = [Counter[str](), Counter[str](), Counter[str]()]
        for batch in answered:
            total += self.sums(batch.outputs, batch.targets)
            for count, more in zip(counts, _matched(*self._tags(batch.outputs, batch.targets)), strict=True):
                count.update(more)
            owners = [-1] * len(batch.rows) if clients is None else clients[batch.rows].tolist()
            for client in sorted({owner for owner in owners if owner >= 0}):
                places = torch.tensor([place for place, owner in enumerate(owners) if owner == client])
                sums = self.sums(batch.outputs[places], batch.targets[places])
                of_clients[client] = of_clients.get(client, Sums()) + sums
                rows_of[client] += len(places)
        by_client: dict[int, Values] = {
            client: {**self._defined(sums), "num_examples": rows_of[client]}
            for client, sums in sorted(of_clients.items())
        }
        right, given, labelled = counts
        by_kind: dict[str, Values] = {
            kind: {
                PRECISION.name: _fraction(right[kind], given[kind]),
                RECALL.name: right[kind] / labelled[kind] if labelled[kind] else None,
                F1.name: 2 * right[kind] / (given[kind] + labelled[kind]) if labelled[kind] else None,
                "num_examples": labelled[kind],
            }
            for kind in dict.fromkeys(span.kind for name in class_names for span in spans([name]))
        }
        return Details(self._defined(total), by_kind, by_client)

    def confidence(self, outputs: Tensor) -> Tensor:
        """Not defined for tags.

        Raises:
            InputError: always.
        """
        raise InputError(
            "tags have no confidence of a whole text, so exits cannot be chosen by confidence.",
            hint="choose a fixed exit or a budget instead.",
        )

    def answers(self, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> list[Answer]:
        """The tags of the words of each row that are read, and their spans."""
        answers: list[Answer] = []
        for labels, is_read in zip(outputs[..., :-1].argmax(-1).tolist(), (outputs[..., -1] > 0).tolist(), strict=True):
            last = max((place + 1 for place, read in enumerate(is_read) if read), default=0)
            tags = [
                class_names[label] if read else OUTSIDE
                for label, read in zip(labels[:last], is_read[:last], strict=True)
            ]
            answers.append(Tagged(tuple(tags), tuple(spans(tags)), exit))
        return answers

    def records(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float]]:
        """True and predicted tags of each row."""
        truths, answers = self._tags(outputs, targets)
        return [
            {"tags": " ".join(truth), "predicted": " ".join(answer)}
            for truth, answer in zip(truths, answers, strict=True)
        ]

    def _word_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each word [R, W]; 0 where there is no word, or it is not read."""
        losses = functional.cross_entropy(
            outputs[..., :-1].flatten(0, 1), targets.clamp(min=0).flatten(), reduction="none"
        )
        counts = (targets != NO_TAG) & (outputs[..., -1] > 0)
        return torch.where(counts, losses.view(targets.shape), 0.0)

    def _tags(self, outputs: Tensor, targets: Tensor) -> tuple[list[list[str]], list[list[str]]]:
        """True and predicted tags of the words of each row.

        Raises:
            ValueError: the task is not settled.
        """
        if self.tags is None:
            raise ValueError("the tags are not settled yet: call `settled` first")
        names, lengths = [*self.tags, OUTSIDE], (targets != NO_TAG).sum(1).tolist()
        is_read = outputs[..., -1] > 0
        answers = torch.where(is_read, outputs[..., :-1].argmax(-1), len(self.tags))
        truth, predicted = (
            [[names[label] for label in row[:length]] for row, length in zip(table.tolist(), lengths, strict=True)]
            for table in (targets, answers)
        )
        return truth, predicted

    def _defined(self, sums: Sums) -> dict[str, float]:
        """The measures of an evaluation, without those of spans where there is neither a span nor an answer."""
        values, has_labels = self.values(sums), sums.totals["spans labelled"][0] > 0
        if not has_labels:
            del values[ENTITY_RECALL.name]
            if not sums.totals["spans answered"][0]:
                del values[ENTITY_F1.name], values[ENTITY_PRECISION.name]
        return values


def _matched(
    truths: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Numbers of spans by kind: those that are right, answered and labelled."""
    right, answered, labelled = Counter[str](), Counter[str](), Counter[str]()
    for truth, answer in zip(truths, answers, strict=True):
        expected, given = set(spans(truth)), set(spans(answer))
        right.update(span.kind for span in expected & given)
        answered.update(span.kind for span in given)
        labelled.update(span.kind for span in expected)
    return right, answered, labelled


def _fraction(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
