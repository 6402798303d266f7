"""Single-label classification: cross-entropy as the loss, accuracy as the primary measure.

Shapes: R rows, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedelta.settings import Context, Settings
from fedelta.tasks import imbalance
from fedelta.tasks.base import Answer, Loader, Measure, Sums
from fedelta.tasks.details import Answered, Details, Values, by_client
from fedelta.tasks.labels import read_labels, unwrapped
from fedelta.tasks.scores import F1, PRECISION, RECALL, WHOLE_SET, by_class, confusion, over_set
from fedelta.tasks.targets import ReadTargets, TargetColumn, Targets

ACCURACY = Measure("accuracy", "accuracy", is_fraction=True)
LOSS = Measure("loss_nats", "loss", higher_is_better=False, unit="nats per example")

_IMAGES = ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "AutoModelForImageClassification")
_TEXTS = ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "AutoModelForSequenceClassification")
LOADERS = {
    "image": Loader(*_IMAGES, "image-classification"),
    "audio": Loader(*_IMAGES, "audio-classification"),  # models see a recording as a spectrogram image
    "text": Loader(*_TEXTS, "text-classification", "SEQ_CLS"),
}


@dataclass(frozen=True)
class Prediction:
    """The predicted class of one example.

    Args:
        label: name of the most probable class.
        probability: of that class, 0 to 1.
        probabilities: class name to probability, in label order; the sum is 1.
        exit: number of the exit that answered, from 1; None for a model without exits.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    exit: int | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The class and its probability."""
        return self.label, f"{self.probability:.4f}"


class Classification(Settings):
    """Single-label classification: section `[task]`.

    Args:
        class_weights: of the rows of each class in the loss, by name, 1 for those that are not named; `balanced`: so
            that all classes count alike, from the number of rows that each has among all clients.
        focal_gamma: exponent of the focal loss; 0 for the plain cross-entropy.
    """

    name: Literal["classification"] = "classification"
    class_weights: imbalance.Weights = "none"
    focal_gamma: imbalance.Gamma = 0.0  # Lin et al. 2017 have 2
    primary: ClassVar[Measure] = ACCURACY
    loss: ClassVar[Measure] = LOSS
    measured: ClassVar[Mapping[str, Measure]] = {
        measure.name: measure for measure in (ACCURACY, LOSS, *WHOLE_SET, PRECISION, RECALL, F1)
    }
    stratum: ClassVar[tuple[str, str]] = ("class", "classes")
    output: ClassVar[tuple[str, str]] = ("class", "classes")
    has_classes: ClassVar[bool] = True
    column: ClassVar[str] = "class labels, or one named 'label'"

    def problems(self, context: Context) -> list[str]:
        """Reports counts of the clients' classes that no noise would cover, and weights that would have no effect."""
        if context.get("privacy.is_on") and self.automatic:
            return [
                "`task.class_weights` would follow from the clients' labels, which `[privacy]` protects; set numbers"
            ]
        if context.get("privacy.unit") == "example" and self.class_weights != "none":
            return ["`task.class_weights` has no effect with `privacy.unit` = 'example': each gradient is clipped"]
        return []

    def loader(self, modality: str) -> Loader | None:
        """A classifier."""
        return LOADERS.get(modality)

    def num_outputs(self, class_names: Sequence[str]) -> int:
        """A logit for each class."""
        return len(class_names)

    def candidates(self, columns: Mapping[str, str | None]) -> list[str]:
        """The column of class labels if there is exactly one, else the column named `label`."""
        of_classes = [name for name, kind in columns.items() if kind == "classes"]
        return ["label"] if "label" in columns and len(of_classes) != 1 else of_classes

    def plain(self, column: TargetColumn) -> TargetColumn:
        """A label in each row."""
        return unwrapped(column)

    @property
    def automatic(self) -> tuple[str, ...]:
        """The weights, if they are to be balanced."""
        return ("class_weights",) if self.class_weights == "balanced" else ()

    def statistics(self, targets: Targets, class_names: Sequence[str]) -> Sums:
        """The number of rows of each class."""
        if not self.automatic:
            return Sums()
        labels = targets.fetch(torch.arange(len(targets)))
        return imbalance.counts(labels.bincount(minlength=len(class_names)).tolist(), len(labels), class_names)

    def settled(self, statistics: Sums, class_names: Sequence[str]) -> Self:
        """With a weight for each class, in label order."""
        weights = imbalance.balanced(statistics, class_names) if self.automatic else self.class_weights
        if not isinstance(weights, dict):
            return self
        return self.model_copy(update={"class_weights": imbalance.in_order("task.class_weights", weights, class_names)})

    def targets(self, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
        """Labels in terms of the training set's classes; see `read_labels`."""
        return read_labels(train, test)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each row, in nats; the focal loss, if there is an exponent."""
        return imbalance.focal(functional.cross_entropy(outputs, targets, reduction="none"), self.focal_gamma)

    def weights(self, targets: Tensor) -> Tensor | None:
        """The weight of each row's class; None if all rows count alike.

        Raises:
            ValueError: the task is not settled.
        """
        if self.class_weights == "none":
            return None
        if not isinstance(self.class_weights, dict):
            raise ValueError("`class_weights` is not settled yet: call `settled` first")
        return torch.tensor(list(self.class_weights.values()), device=targets.device)[targets]

    def divergences(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """KL(p_teacher || p) of each row, in nats."""
        log_p_RC, log_teacher_RC = (functional.log_softmax(logits, dim=-1) for logits in (outputs, teacher.detach()))
        return (log_teacher_RC.exp() * (log_teacher_RC - log_p_RC)).sum(-1)

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """Number of correct answers, and the summed loss by the weights of its rows."""
        num_correct, weights = int((outputs.argmax(1) == targets).sum()), self.weights(targets)
        if weights is None and not self.focal_gamma:
            loss = float(functional.cross_entropy(outputs, targets, reduction="sum").double()), float(len(targets))
        else:
            losses = self.losses(outputs, targets).double()
            counted = torch.ones_like(losses) if weights is None else weights.double()
            loss = float((losses * counted).sum()), float(counted.sum())
        return Sums({ACCURACY.name: (num_correct, len(targets)), LOSS.name: loss})

    def values(self, sums: Sums) -> dict[str, float]:
        """Fraction of correct answers, and mean cross-entropy."""
        return {name: sums.mean(name) for name in (ACCURACY.name, LOSS.name)}

    def details(
        self, answered: Iterable[Answered], class_names: Sequence[str], clients: Tensor | None = None
    ) -> Details:
        """The measures of an evaluation and those of scikit-learn, by class and by client, and the confusion matrix."""
        sums, rows, labels, losses, weights, probabilities = Sums(), [], [], [], [], []
        for batch in answered:
            sums += self.sums(batch.outputs, batch.targets)
            rows.append(batch.rows)
            labels.append(batch.targets.cpu())
            losses.append(self.losses(batch.outputs, batch.targets).double().cpu())
            weighted = self.weights(batch.targets)
            weights.append(torch.ones(len(batch.rows)) if weighted is None else weighted.cpu())
            probabilities.append(torch.softmax(batch.outputs.double(), dim=1).cpu())
        truth, probable = torch.cat(labels).numpy(), torch.cat(probabilities).numpy()
        loss, weight = torch.cat(losses).numpy(), torch.cat(weights).double().numpy()
        of_clients: dict[int, Values] = {
            client: {
                ACCURACY.name: float((probable[places].argmax(1) == truth[places]).mean()),
                LOSS.name: float(np.average(loss[places], weights=weight[places])),
                **over_set(truth[places], probable[places]),
                "num_examples": len(places),
            }
            for client, places in by_client(torch.cat(rows), clients)
        }
        measures = self.values(sums) | over_set(truth, probable)
        classes = by_class(truth, probable, class_names)
        return Details(measures, classes, of_clients, confusion(truth, probable, class_names))

    def confidence(self, outputs: Tensor) -> Tensor:
        """The largest class probability, as in MSDNet (Huang et al. 2018, arXiv 1703.09844)."""
        return torch.softmax(outputs.double(), dim=1).max(1).values

    def answers(self, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> list[Answer]:
        """The most probable class and all class probabilities of each row."""
        answers: list[Answer] = []
        for row in torch.softmax(outputs.double(), dim=1).tolist():
            probabilities = dict(zip(class_names, row, strict=True))
            label = max(probabilities, key=probabilities.__getitem__)
            answers.append(Prediction(label, probabilities[label], probabilities, exit))
        return answers

    def records(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float]]:
        """True class, predicted class and all class probabilities of each row."""
        probabilities_RC = torch.softmax(outputs.double(), dim=1)
        return [
            {"label": class_names[label], "predicted": class_names[predicted]}
            | {f"probability of {name}": value for name, value in zip(class_names, row, strict=True)}
            for label, predicted, row in zip(
                targets.tolist(), outputs.argmax(1).tolist(), probabilities_RC.tolist(), strict=True
            )
        ]
