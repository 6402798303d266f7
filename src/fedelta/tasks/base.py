"""The task protocol: what a label is, which loss is minimised, and which measures rate an answer.

While a set is evaluated, a measure is kept as a sum with its weight, so that batches, clients and sites add up.
Records map the name of each measure to its value. The *primary* measure is the one in tables and curves, and the one
by which learning rates are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import ClassVar, Protocol

from torch import Tensor

from fedelta.modalities.settings import DialogueSettings
from fedelta.tasks.details import Answered, Details
from fedelta.tasks.targets import ReadTargets, TargetColumn, Targets


@dataclass(frozen=True)
class Measure:
    """A number that rates answers.

    Args:
        name: key in records and summaries; ends with the unit if there is one, as in `loss_nats`.
        label: name in running text, such as `balanced accuracy`.
        higher_is_better: False for losses and errors.
        is_fraction: whether values lie in 0..1 and are shown in percent.
        unit: shown after the number, such as `nats per example`; empty for none.
    """

    name: str
    label: str
    higher_is_better: bool = True
    is_fraction: bool = False
    unit: str = ""


@dataclass(frozen=True)
class Evaluation:
    """The measures of a model on a set of examples.

    Args:
        measures: name of each of the task's measures, including the loss, to its value; at the last exit if the model
            has exits.
        by_exit: name of a measure to its values at all exits, lowest exit first; empty for a model without exits.
    """

    measures: Mapping[str, float]
    by_exit: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def not_finite(self) -> str | None:
        """Name of the first measure that is NaN or infinite; None when all are numbers."""
        return next((name for name, value in self.measures.items() if not math.isfinite(value)), None)


def mean_of(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The mean of each measure over models evaluated on the same examples."""
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
    """Weighted sums over some examples, from which measures are computed; sums over disjoint sets can be added.

    Args:
        totals: name to a sum and its weight.
    """

    totals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __add__(self, other: Sums) -> Sums:
        """The sums over the union of both sets.

        >>> (Sums({"error": (3.0, 2)}) + Sums({"error": (1.0, 2)})).mean("error")
        1.0
        """
        totals = dict(self.totals)
        for name, (total, weight) in other.totals.items():
            previous_total, previous_weight = totals.get(name, (0.0, 0.0))
            totals[name] = (previous_total + total, previous_weight + weight)
        return Sums(totals)

    def mean(self, name: str) -> float:
        """The sum of `name` divided by its weight."""
        total, weight = self.totals[name]
        return total / weight


def added(batches: Iterable[Sequence[Sums]]) -> list[Sums]:
    """The sums at each exit over all batches, of which each has its sums at each exit; added in their order."""
    total: list[Sums] = []
    for batch in batches:
        total = [before + sums for before, sums in zip(total, batch, strict=True)] if total else list(batch)
    return total


@dataclass(frozen=True)
class Loader:
    """The Hugging Face names of the models that fit a task.

    Args:
        families: table in `transformers.models.auto.modeling_auto` that lists the supported model families.
        auto_class: transformers class that loads them.
        pipeline_tag: tag for the model card; None if the hub has none for this task.
        peft_task: PEFT task type of a model with a head; None for PEFT's plain wrapper.
        dialogue: what a language model is trained on; None for any other model.
    """

    families: str
    auto_class: str
    pipeline_tag: str | None = None
    peft_task: str | None = None
    dialogue: DialogueSettings | None = None


def reads_dialogues(task: Task) -> bool:
    """Whether a task is one for language models, which read dialogues."""
    loader = task.loader("text")
    return loader is not None and loader.dialogue is not None


class Answer(Protocol):
    """A model's answer for one example."""

    @property
    def exit(self) -> int | None:
        """Number of the exit that answered, from 1; None for a model without exits."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The answer as text, one string per column of a printed table."""


class Task(Protocol):
    """What is predicted, which loss is minimised and how answers are measured: section `[task]`.

    Outputs are the model's outputs for a batch, float32 of shape [R, ...] with one row per example. Targets are rows of
    a `Targets` on the same device.

    A task may leave settings to the training data, such as the scale of a regression. They are settled once, before the
    model is built, from sums that clients share (`automatic`, `statistics`, `settled`); all other methods but `loader`,
    `num_outputs`, `candidates` and `targets` are called on a task that is settled.

    Class attributes:
        primary: measure by which runs are compared; `values` must return it.
        loss: mean of `losses` over examples, each with its weight if there are `weights`; `values` must return it too.
        measured: every measure that an evaluation or `details` may contain, by name.
        stratum: singular and plural of the word for a stratum (`Targets.strata`), such as `("class", "classes")`.
        output: singular and plural of the word for an output, such as `("class", "classes")`.
        has_classes: whether answers are classes, whose names come from the training data.
        column: description of the column that holds targets by default, for messages.
    """

    primary: ClassVar[Measure]
    loss: ClassVar[Measure]
    measured: ClassVar[Mapping[str, Measure]]
    stratum: ClassVar[tuple[str, str]]
    output: ClassVar[tuple[str, str]]
    has_classes: ClassVar[bool]
    column: ClassVar[str]

    @property
    def name(self) -> str:
        """Name in the configuration."""

    def loader(self, modality: str) -> Loader | None:
        """The kind of model for this modality; None if there is none."""

    def num_outputs(self, class_names: Sequence[str]) -> int:
        """Number of outputs per example, or per word."""

    def candidates(self, columns: Mapping[str, str | None]) -> list[str]:
        """The columns that may hold targets; unless there is exactly one, the configuration must name it.

        Args:
            columns: column name to kind of content: "classes" (class labels), "text", "integer", "float", "lists of
                classes" and likewise for the others, or None.
        """

    def plain(self, column: TargetColumn) -> TargetColumn:
        """The column with a label, or a list of labels, in each row, to match them with classes that are known."""

    @property
    def automatic(self) -> tuple[str, ...]:
        """Names of the settings that the configuration leaves to the training data; none for most tasks."""

    def statistics(self, targets: Targets, class_names: Sequence[str]) -> Sums:
        """The sums over a client's training targets that `settled` needs; empty if it needs none."""

    def settled(self, statistics: Sums, class_names: Sequence[str]) -> Task:
        """The task with its `automatic` settings.

        Args:
            statistics: of all clients, added.
            class_names: of the outputs (`ReadTargets.class_names`).

        Raises:
            ConfigError: a setting does not fit the targets.
        """

    def targets(self, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
        """The targets of the training and the test set; problems are returned, not raised."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, of shape [R], with gradients."""

    def weights(self, targets: Tensor) -> Tensor | None:
        """The weight of each row in the mean loss of its batch, float32 of shape [R], 0 or more; None if all are alike.

        A batch whose weights are all 0 has the loss 0 and no gradient. Under DP-SGD all examples count alike, because
        the gradient of each is clipped by itself.
        """

    def divergences(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The distance of each row's outputs to the teacher's, of shape [R]; 0 where equal; gradients in `outputs`."""

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """The sums over these examples that `values` needs."""

    def values(self, sums: Sums) -> dict[str, float]:
        """The measures of a set of examples, the primary one first."""

    def details(
        self, answered: Iterable[Answered], class_names: Sequence[str], clients: Tensor | None = None
    ) -> Details:
        """Detailed measures of a finished model.

        Args:
            answered: the evaluated set, batch by batch.
            class_names: in label order.
            clients: client number of each row of the set, int64, -1 for none; None if unknown.
        """

    def confidence(self, outputs: Tensor) -> Tensor:
        """The confidence of each answer, 0 to 1, of shape [R].

        Raises:
            InputError: this task has no confidence.
        """

    def answers(self, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> list[Answer]:
        """The answer for each row.

        Args:
            outputs: of a batch.
            class_names: in label order.
            exit: number of the exit that gave the outputs; None for a model without exits.
        """

    def records(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float]]:
        """True and predicted value of each row, by column of a table."""
