"""One class for each example: cross-entropy, and how often the most probable class is the right one."""

from __future__ import annotations

from typing import ClassVar, Literal

from fedelta.settings import Settings
from fedelta.tasks.base import Measure

ACCURACY = Measure("accuracy", "accuracy", is_fraction=True)
LOSS = Measure("loss_nats", "loss", higher_is_better=False, unit="nats per example")


class Classification(Settings):
    """Single-label classification: section `[task]`."""

    name: Literal["classification"] = "classification"
    primary: ClassVar[Measure] = ACCURACY
    loss: ClassVar[Measure] = LOSS
