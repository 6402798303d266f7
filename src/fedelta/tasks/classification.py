"""One class for each example: cross-entropy, and how often the most probable class is the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from fedelta.settings import Settings
from fedelta.tasks.base import Measure

ACCURACY = Measure("accuracy", "accuracy", is_fraction=True)
LOSS = Measure("loss_nats", "loss", higher_is_better=False, unit="nats per example")
# Of a whole set, once a run has ended.
MACRO_F1 = Measure("macro_f1", "macro F1", is_fraction=True)
BALANCED_ACCURACY = Measure("balanced_accuracy", "balanced accuracy", is_fraction=True)
AUROC = Measure("auroc", "AUROC", is_fraction=True)
PRECISION = Measure("precision", "precision", is_fraction=True)
RECALL = Measure("recall", "recall", is_fraction=True)
F1 = Measure("f1", "F1", is_fraction=True)


class Classification(Settings):
    """Single-label classification: section `[task]`."""

    name: Literal["classification"] = "classification"
    primary: ClassVar[Measure] = ACCURACY
    loss: ClassVar[Measure] = LOSS
    measured: ClassVar[Mapping[str, Measure]] = {
        each.name: each for each in (ACCURACY, LOSS, MACRO_F1, BALANCED_ACCURACY, AUROC, PRECISION, RECALL, F1)
    }
