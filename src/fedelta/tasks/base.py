"""What a task is: the only place that knows what a label is, what is minimised and how good an answer is.

A measure is kept as a sum with its weight while it is taken, so that batches, clients and sites add up; only a whole
set has a value. Records carry a map of measures by name. One of them is *primary*: it is what tables, curves and the
choice of a learning rate go by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import ClassVar, Protocol

from torch import Tensor

from fedelta.tasks.details import Answered, Details
from fedelta.tasks.targets import ReadTargets, TargetColumn


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
        {name: fmean(evaluation.measures[name] for evaluation in evaluations) for name in first.measures},
        {
            name: tuple(map(fmean, zip(*(evaluation.by_exit[name] for evaluation in evaluations), strict=True)))
            for name in first.by_exit
        },
    )


@dataclass(frozen=True)
class Sums:
    """What measures need of some examples; sums of disjoint sets of examples add up to those of all of them.

    Args:
        totals: name to a sum and its weight.
    """

    totals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __add__(self, other: Sums) -> Sums:
        """The sums of both sets of examples together.

        >>> (Sums({"error": (3.0, 2)}) + Sums({"error": (1.0, 2)})).mean("error")
        1.0
        """
        totals = dict(self.totals)
        for name, (total, weight) in other.totals.items():
            before, weight_before = totals.get(name, (0.0, 0.0))
            totals[name] = (before + total, weight_before + weight)
        return Sums(totals)

    def mean(self, name: str) -> float:
        """The sum of `name` by its weight."""
        total, weight = self.totals[name]
        return total / weight


@dataclass(frozen=True)
class Loader:
    """What a model that fits a task is called in the Hugging Face world.

    Args:
        families: the table of `transformers.models.auto.modeling_auto` that has the families of such models.
        auto_class: the class of transformers that loads them.
        pipeline_tag: of a model card; None where the hub has none.
        peft_task: PEFT's task type for a model with a head; None for its plain wrapper.
    """

    families: str
    auto_class: str
    pipeline_tag: str | None = None
    peft_task: str | None = None


class Answer(Protocol):
    """What a model says about one example."""

    @property
    def exit(self) -> int | None:
        """Number of the exit that said so, from 1; None for a model without exits."""

    @property
    def cells(self) -> tuple[str, ...]:
        """What it says, as it stands in a line of text."""


class Task(Protocol):
    """What is predicted, what is minimised, and how good an answer is: section `[task]`.

    Outputs are what the model gives for a batch, [R, ...] with a row for each example, float32; targets are the rows
    of a `Targets` on the same device.

    Class attributes:
        primary: what tables, curves and choices go by; among the values of `values`.
        loss: the mean of `losses` over examples; among them too.
        measured: all measures that an evaluation or `details` may hold, by name.
        stratum: what a kind of row (`Targets.strata`) is called, one and several.
        has_classes: whether answers are among classes, which the training data tell.
        column: in words, which column of a data set holds targets where none is named.
    """

    primary: ClassVar[Measure]
    loss: ClassVar[Measure]
    measured: ClassVar[Mapping[str, Measure]]
    stratum: ClassVar[tuple[str, str]]
    has_classes: ClassVar[bool]
    column: ClassVar[str]

    @property
    def name(self) -> str:
        """As in the configuration."""

    def loader(self, modality: str) -> Loader | None:
        """The kind of model for examples of a modality; None where there is none."""

    def num_outputs(self, class_names: Sequence[str]) -> int:
        """Outputs that the model has for an example."""

    def candidates(self, columns: Mapping[str, str | None]) -> list[str]:
        """The columns that could hold targets; one of them, or the configuration has to name it.

        Args:
            columns: name to what it holds: "classes" (class labels), "text", "integer", "float", or None.
        """

    def targets(self, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
        """The targets of a training and a test set; what is wrong with them is told, not raised."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is minimised, by row [R], with gradients."""

    def divergences(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """How far outputs are from those of a teacher, by row [R], with gradients of `outputs`; 0 where equal."""

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """What `values` needs of these examples."""

    def values(self, sums: Sums) -> dict[str, float]:
        """The measures of a set of examples, the primary one first."""

    def details(
        self, answered: Iterable[Answered], class_names: Sequence[str], clients: Tensor | None = None
    ) -> Details:
        """Measures of a finished model.

        Args:
            answered: an evaluated set, batch by batch.
            class_names: in label order.
            clients: number of the client that each row of the set is from, int64, -1 for none; None where that is
                not known.
        """

    def confidence(self, outputs: Tensor) -> Tensor:
        """How sure each answer is [R], 0 to 1.

        Raises:
            InputError: outputs do not say.
        """

    def answers(self, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> list[Answer]:
        """What outputs say, by row.

        Args:
            outputs: of a batch.
            class_names: in label order.
            exit: number of the exit that they come from; None without exits.
        """

    def records(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float]]:
        """What is true and what is answered, by row and column of a table."""
