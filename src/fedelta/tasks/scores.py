"""Measures of a classification that need the whole set, as scikit-learn defines them.

Only the area under the ROC curve is computed by scikit-learn: importing it takes longer than a small run's round.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedelta.tasks.base import Measure
from fedelta.tasks.details import Confusion, Values

MACRO_F1 = Measure("macro_f1", "macro F1", is_fraction=True)
BALANCED_ACCURACY = Measure("balanced_accuracy", "balanced accuracy", is_fraction=True)
AUROC = Measure("auroc", "AUROC", is_fraction=True)
PRECISION = Measure("precision", "precision", is_fraction=True)
RECALL = Measure("recall", "recall", is_fraction=True)
F1 = Measure("f1", "F1", is_fraction=True)
WHOLE_SET = (MACRO_F1, BALANCED_ACCURACY, AUROC)  # those that `over_set` may return

Truth = NDArray[np.int64]
Probabilities = NDArray[np.float64]


def over_set(truth: Truth, probabilities: Probabilities) -> dict[str, float]:
    """Macro F1, balanced accuracy and, with two classes that both occur, the area under the ROC curve.

    F1 is averaged over the classes that occur in labels or predictions, recall over those that occur in labels.

    Args:
        truth: labels, of shape [N].
        probabilities: of shape [N, C].
    """
    classes = _score(truth, probabilities)
    occurring = (classes.num_examples > 0) | (classes.num_answers > 0)
    scores = {
        MACRO_F1.name: float(classes.f1[occurring].mean()),
        BALANCED_ACCURACY.name: float(classes.recall[classes.num_examples > 0].mean()),
    }
    if probabilities.shape[1] == 2 and len(np.unique(truth)) == 2 and np.isfinite(probabilities).all():
        from sklearn.metrics import roc_auc_score

        scores[AUROC.name] = float(roc_auc_score(truth, probabilities[:, 1]))
    return scores


def by_class(truth: Truth, probabilities: Probabilities, class_names: Sequence[str]) -> dict[str, Values]:
    """Precision, recall, F1 and number of examples of each class.

    The precision of a class that was never predicted is 0; recall and F1 of a class without examples are None.
    """
    classes = _score(truth, probabilities)
    return {
        name: {
            PRECISION.name: float(classes.precision[label]),
            RECALL.name: float(classes.recall[label]) if classes.num_examples[label] else None,
            F1.name: float(classes.f1[label]) if classes.num_examples[label] else None,
            "num_examples": int(classes.num_examples[label]),
        }
        for label, name in enumerate(class_names)
    }


def confusion(truth: Truth, probabilities: Probabilities, class_names: Sequence[str]) -> Confusion:
    """The confusion matrix."""
    num_classes = len(class_names)
    pairs = truth * num_classes + probabilities.argmax(1)
    counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    return Confusion(tuple(class_names), tuple(map(tuple, counts.tolist())), len(truth))


@dataclass(frozen=True)
class _Classes:
    """Counts and scores of each class, all of shape [C]; a fraction of nothing is 0.

    Args:
        num_examples: with this label.
        num_answers: with this class as the most probable one.
        precision: of the answers those that are right.
        recall: of the examples those that are answered right.
        f1: their harmonic mean.
    """

    num_examples: NDArray[np.int64]
    num_answers: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def _score(truth: Truth, probabilities: Probabilities) -> _Classes:
    answers, num_classes = probabilities.argmax(1), probabilities.shape[1]
    examples, answered, right = (
        np.bincount(labels, minlength=num_classes) for labels in (truth, answers, truth[truth == answers])
    )
    return _Classes(
        examples,
        answered,
        precision=_fraction(right, answered),
        recall=_fraction(right, examples),
        f1=_fraction(2 * right, examples + answered),
    )


def _fraction(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
