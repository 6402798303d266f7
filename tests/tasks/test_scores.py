"""Scores over a whole set, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

from fedelta.tasks.scores import by_class, confusion, over_set


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
@pytest.mark.parametrize("num_classes", [2, 3, 20])
@pytest.mark.parametrize("num_examples", [1, 5, 200])
def test_scores_are_those_of_scikit_learn_to_the_last_bit(num_classes, num_examples):
    generator = np.random.default_rng(num_classes * num_examples)
    probabilities = generator.random((num_examples, num_classes))
    truth = generator.integers(0, num_classes, num_examples)
    answers, labels = probabilities.argmax(1), list(range(num_classes))
    names = [f"class {label}" for label in labels]
    theirs = precision_recall_fscore_support(truth, answers, labels=labels, zero_division=0.0)
    for ours, precision, recall, f1, support in zip(
        by_class(truth, probabilities, names).values(), *theirs, strict=True
    ):
        expected = (precision, recall, f1) if support else (precision, None, None)
        assert tuple(ours.values()) == (*expected, support)
    overall = over_set(truth, probabilities)
    assert overall["balanced_accuracy"] == balanced_accuracy_score(truth, answers)
    occurring = np.union1d(truth, answers)
    assert overall["macro_f1"] == theirs[2][occurring].mean()
    assert confusion(truth, probabilities, names).counts == tuple(
        map(tuple, confusion_matrix(truth, answers, labels=labels).tolist())
    )
