"""What a task is: the only place that knows what a label is, what is minimised and how good an answer is.

A measure is kept as a sum with its weight while it is taken, so that batches, clients and sites add up; only a whole
set has a value. Records carry a map of measures by name. One of them is *primary*: it is what tables, curves and the
choice of a learning rate go by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean


@dataclass(frozen=True)
class Measure:
    """A named number that says how good answers are.

    Args:
        name: its key in records and summaries, with the unit at the end where it has one, such as `loss_nats`.
        label: in words, to stand inside a sentence, such as `balanced accuracy`.
        higher_is_better: which way is better.
        is_fraction: lies in 0..1 and is shown in percent.
        unit: behind the number where it is shown, such as `nats per example`; empty for none.
    """

    name: str
    label: str
    higher_is_better: bool = True
    is_fraction: bool = False
    unit: str = ""

    def is_better(self, value: float, than: float) -> bool:
        """Whether `value` is strictly better than `than`."""
        return value > than if self.higher_is_better else value < than


@dataclass(frozen=True)
class Evaluation:
    """Result on a set of examples.

    Args:
        measures: name of each measure of the task, the loss among them, to its value; of a model with exits, at its
            last.
        by_exit: name of a measure to its value at each exit, lowest exit first; nothing for a model without exits.
    """

    measures: Mapping[str, float]
    by_exit: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def not_finite(self) -> str | None:
        """Name of the first measure that is NaN or infinite; None when all are numbers."""
        return next((name for name, value in self.measures.items() if not math.isfinite(value)), None)


def mean_of(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The mean of each measure over models that were evaluated on the same examples."""
    first = evaluations[0]
    return Evaluation(
        {name: fmean(each.measures[name] for each in evaluations) for name in first.measures},
        {
            name: tuple(map(fmean, zip(*(each.by_exit[name] for each in evaluations), strict=True)))
            for name in first.by_exit
        },
    )
