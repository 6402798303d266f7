"""Multi-label classification: a row has any number of labels, each is predicted by itself.

    loss = mean over labels of the binary cross-entropy
    answer = the labels with a probability of `threshold` or more

Shapes: R rows, N rows of a set, C labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedelta.settings import Context, Settings
from fedelta.tasks import imbalance
from fedelta.tasks.base import Answer, Loader, Measure, Sums
from fedelta.tasks.classification import LOADERS
from fedelta.tasks.details import Answered, Details, Values, by_client
from fedelta.tasks.label_sets import in_lists, read_label_sets
from fedelta.tasks.scores import F1, MACRO_F1, PRECISION, RECALL
from fedelta.tasks.targets import ReadTargets, TargetColumn, Targets

MICRO_F1 = Measure("micro_f1", "micro F1", is_fraction=True)
EXACT_MATCH = Measure("exact_match", "exact match", is_fraction=True)
LOSS = Measure("loss_nats", "loss", higher_is_better=False, unit="nats per label")
AUROC = Measure("auroc", "mean AUROC", is_fraction=True)


@dataclass(frozen=True)
class LabelSet:
    """The predicted labels of one example.

    Args:
        labels: names of the predicted labels, in label order; perhaps none.
        probabilities: label to probability, in label order; each by itself.
        exit: number of the exit that answered, from 1; None for a model without exits.
    """

    labels: tuple[str, ...]
    probabilities: dict[str, float]
    exit: int | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The labels, and the probability of each."""
        return ", ".join(self.labels) or "(none)", ", ".join(f"{self.probabilities[name]:.4f}" for name in self.labels)


class MultiLabel(Settings):
    """Multi-label classification: section `[task]`.

    Args:
        threshold: probability from which a label is predicted.
        pos_weight: weight of the rows that have a label against those that do not: a number for all labels, one by
            label, or `balanced`, rows without by rows with the label.
        focal_gamma: exponent of the focal loss; 0 for the plain cross-entropy.
        separator: between the labels in a column of texts, such as "|".
    """

    name: Literal["multi-label"] = "multi-label"
    threshold: float = Field(default=0.5, gt=0, lt=1)  # as scikit-learn's classifiers
    pos_weight: imbalance.Weights | imbalance.Positive = "none"
    focal_gamma: imbalance.Gamma = 0.0
    separator: Annotated[str, Field(min_length=1)] | None = None
    primary: ClassVar[Measure] = MICRO_F1
    loss: ClassVar[Measure] = LOSS
    measured: ClassVar[Mapping[str, Measure]] = {
        measure.name: measure for measure in (MICRO_F1, MACRO_F1, EXACT_MATCH, LOSS, AUROC, PRECISION, RECALL, F1)
    }
    stratum: ClassVar[tuple[str, str]] = ("rarest label", "rarest labels")
    output: ClassVar[tuple[str, str]] = ("label", "labels")
    has_classes: ClassVar[bool] = True
    column: ClassVar[str] = "lists of class labels, or lists or texts named 'labels' or 'label'"

    def problems(self, context: Context) -> list[str]:
        """Reports counts of the clients' labels that no noise would cover."""
        if not context.get("privacy.is_on") or not self.automatic:
            return []
        return ["`task.pos_weight` would follow from the clients' labels, which `[privacy]` protects; set numbers"]

    def loader(self, modality: str) -> Loader | None:
        """A classifier."""
        return LOADERS.get(modality)

    def num_outputs(self, class_names: Sequence[str]) -> int:
        """A logit for each label."""
        return len(class_names)

    def candidates(self, columns: Mapping[str, str | None]) -> list[str]:
        """The only column of lists of class labels, else those named `labels` and `label`."""
        of_classes = [name for name, kind in columns.items() if kind == "lists of classes"]
        return of_classes if len(of_classes) == 1 else [name for name in ("labels", "label") if name in columns]

    def plain(self, column: TargetColumn) -> TargetColumn:
        """A list of labels in each row."""
        return in_lists(column, self.separator)

    @property
    def automatic(self) -> tuple[str, ...]:
        """The weights, if they are to be balanced."""
        return ("pos_weight",) if self.pos_weight == "balanced" else ()

    def statistics(self, targets: Targets, class_names: Sequence[str]) -> Sums:
        """The number of rows with each label."""
        if not self.automatic:
            return Sums()
        values = targets.fetch(torch.arange(len(targets)))
        return imbalance.counts(values.sum(0).tolist(), len(values), class_names)

    def settled(self, statistics: Sums, class_names: Sequence[str]) -> MultiLabel:
        """With a weight for each label, in label order."""
        weights = imbalance.odds(statistics, class_names) if self.automatic else self.pos_weight
        if not isinstance(weights, dict):
            return self
        return self.model_copy(update={"pos_weight": imbalance.in_order("task.pos_weight", weights, class_names)})

    def targets(self, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
        """The labels of each row; see `read_label_sets`."""
        return read_label_sets(self.plain(train), None if test is None else self.plain(test))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The binary cross-entropy of each row, in nats; the mean over the labels."""
        losses_RC = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        losses_RC = imbalance.focal(losses_RC, self.focal_gamma)
        if self.pos_weight != "none":
            losses_RC = losses_RC * torch.where(targets > 0, self._pos_weights(outputs), 1.0)
        return losses_RC.mean(1)

    def weights(self, targets: Tensor) -> Tensor | None:
        """None: all rows count alike."""

    def divergences(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The Kullback-Leibler divergence of each label's probability from the teacher's; the mean over the labels."""
        taught_RC = teacher.detach().sigmoid()
        cross_RC, own_RC = (
            functional.binary_cross_entropy_with_logits(logits, taught_RC, reduction="none")
            for logits in (outputs, teacher.detach())
        )
        return (cross_RC - own_RC).mean(1)

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """The loss, the rows with exactly the right labels, and counts by label."""
        answers_RC, truth_RC = self._answers(outputs), targets > 0
        num_rows = float(len(targets))
        totals = {
            LOSS.name: (float(self.losses(outputs, targets).double().sum()), num_rows),
            EXACT_MATCH.name: (float((answers_RC == truth_RC).all(1).sum()), num_rows),
        }
        parts = {"right": answers_RC & truth_RC, "answered": answers_RC, "labelled": truth_RC}
        by_label = {
            f"{part} {label}": (float(number), num_rows)
            for part, table_RC in parts.items()
            for label, number in enumerate(table_RC.sum(0).tolist())
        }
        return Sums(totals | by_label)

    def values(self, sums: Sums) -> dict[str, float]:
        """F1 over all answers, its mean over labels that occur, exactly answered rows, and the loss.

        F1 is 0 where there is neither a label nor an answer, as in scikit-learn.
        """
        right, answered, labelled = (_by_label(sums, part) for part in ("right", "answered", "labelled"))
        occurring = (answered + labelled) > 0
        of_labels = _f1(right[occurring], answered[occurring], labelled[occurring])
        return {
            MICRO_F1.name: float(_f1(right.sum(), answered.sum(), labelled.sum())),
            MACRO_F1.name: float(of_labels.mean()) if len(of_labels) else 0.0,
            EXACT_MATCH.name: sums.mean(EXACT_MATCH.name),
            LOSS.name: sums.mean(LOSS.name),
        }

    def details(
        self, answered: Iterable[Answered], class_names: Sequence[str], clients: Tensor | None = None
    ) -> Details:
        """The measures of an evaluation and the mean AUROC over labels that have one, by label and by client."""
        batches = [(batch.rows, batch.outputs.cpu(), batch.targets.cpu()) for batch in answered]
        rows, outputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        everything = np.arange(len(rows))
        of_clients: dict[int, Values] = {
            client: {**self._over(outputs, targets, places), "num_examples": len(places)}
            for client, places in by_client(rows, clients)
        }
        return Details(
            self._over(outputs, targets, everything), self._by_label(outputs, targets, class_names), of_clients
        )

    def confidence(self, outputs: Tensor) -> Tensor:
        """The probability of the least certain answer: a label that is predicted, or one that is not."""
        probabilities_RC = torch.sigmoid(outputs.double())
        return torch.maximum(probabilities_RC, 1 - probabilities_RC).min(1).values

    def answers(self, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> list[Answer]:
        """The predicted labels and all probabilities of each row."""
        answers: list[Answer] = []
        for row in torch.sigmoid(outputs.double()).tolist():
            probabilities = dict(zip(class_names, row, strict=True))
            labels = tuple(name for name, value in probabilities.items() if value >= self.threshold)
            answers.append(LabelSet(labels, probabilities, exit))
        return answers

    def records(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float]]:
        """True and predicted labels, and all probabilities of each row."""
        truths = [[name for name, has in zip(class_names, row, strict=True) if has] for row in (targets > 0).tolist()]
        answers = [
            [n for n, has in zip(class_names, row, strict=True) if has] for row in self._answers(outputs).tolist()
        ]
        probabilities = torch.sigmoid(outputs.double()).tolist()
        between = self.separator or "|"
        return [
            {"labels": between.join(truth), "predicted": between.join(answer)}
            | {f"probability of {name}": value for name, value in zip(class_names, row, strict=True)}
            for truth, answer, row in zip(truths, answers, probabilities, strict=True)
        ]

    def _answers(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs.double()) >= self.threshold

    def _pos_weights(self, outputs: Tensor) -> Tensor:
        """[C], or of any shape that is broadcast to it."""
        weights = list(self.pos_weight.values()) if isinstance(self.pos_weight, dict) else self.pos_weight
        if isinstance(weights, str):
            raise ValueError("`pos_weight` is not settled yet: call `settled` first")
        return torch.tensor(weights, dtype=outputs.dtype, device=outputs.device)

    def _over(self, outputs: Tensor, targets: Tensor, places: NDArray[np.int64]) -> dict[str, float]:
        """The measures over some rows; those that are not defined there are left out."""
        logits, truth = outputs[places], targets[places]
        values = self.values(self.sums(logits, truth))
        if not (truth.any() or self._answers(logits).any()):
            del values[MICRO_F1.name], values[MACRO_F1.name]
        areas = [area for area in _areas(logits, truth) if area is not None]
        return values | ({AUROC.name: float(np.mean(areas))} if areas else {})

    def _by_label(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> dict[str, Values]:
        answers_NC, truth_NC = self._answers(outputs), targets > 0
        right, answered, labelled = (
            table.sum(0).numpy().astype(np.float64) for table in (answers_NC & truth_NC, answers_NC, truth_NC)
        )
        areas, f1 = _areas(outputs, targets), _f1(right, answered, labelled)
        return {
            name: {
                PRECISION.name: float(right[label] / answered[label]) if answered[label] else 0.0,
                RECALL.name: float(right[label] / labelled[label]) if labelled[label] else None,
                F1.name: float(f1[label]) if labelled[label] else None,
                AUROC.name: areas[label],
                "num_examples": int(labelled[label]),
            }
            for label, name in enumerate(class_names)
        }


def _by_label(sums: Sums, part: str) -> NDArray[np.float64]:
    """The counts of one part for each label, [C]."""
    number = sum(name.startswith(f"{part} ") for name in sums.totals)
    return np.array([sums.totals[f"{part} {label}"][0] for label in range(number)])


def _f1(
    right: NDArray[np.float64], answered: NDArray[np.float64], labelled: NDArray[np.float64]
) -> NDArray[np.float64]:
    """2 right / (answered + labelled); 0 where both are 0."""
    whole = answered + labelled
    return np.divide(2 * right, whole, out=np.zeros_like(whole, dtype=np.float64), where=whole > 0)


def _areas(outputs: Tensor, targets: Tensor) -> list[float | None]:
    """The area under the ROC curve of each label; None where all rows have it, or none has."""
    truth, logits = (targets > 0).numpy(), outputs.double().numpy()
    areas: list[float | None] = [None] * truth.shape[1]
    defined = np.flatnonzero(truth.any(0) & ~truth.all(0) & np.isfinite(logits).all(0))
    if len(defined):
        from sklearn.metrics import roc_auc_score

        of_defined = np.atleast_1d(roc_auc_score(truth[:, defined], logits[:, defined], average=None))
        for label, area in zip(defined.tolist(), of_defined.tolist(), strict=True):
            areas[label] = area
    return areas
