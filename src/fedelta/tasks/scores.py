"""Measures of a classification that need the whole set, computed with scikit-learn.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    predicted = probabilities.argmax(1)
    occurring = np.unique(np.concatenate([truth, predicted]))
    _, recall, f1, support = precision_recall_fscore_support(truth, predicted, labels=occurring, zero_division=0.0)
    scores = {MACRO_F1.name: float(f1.mean()), BALANCED_ACCURACY.name: float(recall[support > 0].mean())}
    if probabilities.shape[1] == 2 and len(np.unique(truth)) == 2 and np.isfinite(probabilities).all():
        scores[AUROC.name] = float(roc_auc_score(truth, probabilities[:, 1]))
    return scores


def by_class(truth: Truth, probabilities: Probabilities, class_names: Sequence[str]) -> dict[str, Values]:
    """Precision, recall, F1 and number of examples of each class.

    The precision of a class that was never predicted is 0; recall and F1 of a class without examples are None.
    """
    from sklearn.metrics import precision_recall_fscore_support

    numbers = range(len(class_names))
    columns = precision_recall_fscore_support(truth, probabilities.argmax(1), labels=list(numbers), zero_division=0.0)
    scores: dict[str, Values] = {}
    for name, precision, recall, f1, support in zip(class_names, *columns, strict=True):
        scores[name] = {
            PRECISION.name: float(precision),
            RECALL.name: float(recall) if support else None,
            F1.name: float(f1) if support else None,
            "num_examples": int(support),
        }
    return scores


def confusion(truth: Truth, probabilities: Probabilities, class_names: Sequence[str]) -> Confusion:
    """The confusion matrix."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(truth, probabilities.argmax(1), labels=list(range(len(class_names))))
    return Confusion(tuple(class_names), tuple(map(tuple, counts.tolist())), len(truth))
