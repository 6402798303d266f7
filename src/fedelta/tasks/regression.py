"""One number for each example: squared error, told as its root in the unit of the targets.

    loss = ((output - (target - offset) / scale))^2,    prediction = offset + scale * output

Shapes: R rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedelta.errors import InputError, listed
from fedelta.settings import Settings
from fedelta.tasks.base import Answer, Loader, Measure, Sums
from fedelta.tasks.classification import LOADERS
from fedelta.tasks.details import Answered, Details, by_owner
from fedelta.tasks.targets import ReadTargets, TargetColumn

RMSE = Measure("rmse", "root mean squared error", higher_is_better=False)
MAE = Measure("mae", "mean absolute error", higher_is_better=False)
MSE = Measure("mse", "scaled squared error", higher_is_better=False)  # as learned: in units of `scale` squared
R2 = Measure("r2", "coefficient of determination")

_NUM_RANGES = 10  # of targets, each with as many rows of the training set


@dataclass(frozen=True)
class Numbers:
    """A number for each row.

    Args:
        values: as the model learns them, float32 of shape [N].
        strata: the range that each is in, int64 of shape [N].
    """

    values: Tensor
    strata: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, rows: Tensor) -> Tensor:
        """The numbers of `rows`."""
        return self.values[rows]

    def select(self, rows: Tensor) -> Numbers:
        """Those of `rows` alone."""
        return Numbers(self.values[rows], self.strata[rows])


@dataclass(frozen=True)
class Estimate:
    """What the model says about one example.

    Args:
        value: in the unit of the targets.
        exit: number of the exit that said so, from 1; None for a model without exits.
    """

    value: float
    exit: int | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The number."""
        return (f"{self.value:.6g}",)


class Regression(Settings):
    """One number for each example: section `[task]`.

    Args:
        offset: about what targets are on average.
        scale: about how far they are from that: a model starts out with outputs around zero, and steps are small.
    """

    name: Literal["regression"] = "regression"
    offset: float = 0.0
    scale: float = Field(default=1.0, gt=0)
    primary: ClassVar[Measure] = RMSE
    loss: ClassVar[Measure] = MSE
    measured: ClassVar[Mapping[str, Measure]] = {measure.name: measure for measure in (RMSE, MAE, MSE, R2)}
    stratum: ClassVar[tuple[str, str]] = ("range", "ranges")
    has_classes: ClassVar[bool] = False
    column: ClassVar[str] = "numbers named 'target' or 'label'"

    def loader(self, modality: str) -> Loader | None:
        """A classifier with one output; the hub has no word for it."""
        loader = LOADERS.get(modality)
        return None if loader is None else Loader(loader.families, loader.auto_class, None, loader.peft_task)

    def num_outputs(self, class_names: Sequence[str]) -> int:
        """One."""
        return 1

    def candidates(self, columns: Mapping[str, str | None]) -> list[str]:
        """Those named `target` and `label`."""
        return [name for name in ("target", "label") if name in columns]

    def targets(self, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
        """Numbers, and ranges that hold equally many rows of the training set."""
        columns = [train] if test is None else [train, test]
        problems = [problem for column in columns for problem in _problems(column)]
        if not problems and len(set(train.values)) == 1:
            problems.append(
                f"target column {train.name!r} holds {train.values[0]!r} in every row, expected several values"
            )
        if problems:
            empty = Numbers(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
            return ReadTargets(empty, None, (), (), tuple(problems))
        train_values, *test_values = (np.array(column.values, dtype=np.float64) for column in columns)
        edges = np.unique(np.quantile(train_values, np.arange(1, _NUM_RANGES) / _NUM_RANGES))
        numbers = [self._numbers(values, edges) for values in (train_values, *test_values)]
        return ReadTargets(numbers[0], numbers[1] if test_values else None, (), _range_names(edges))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared errors."""
        return (outputs.squeeze(1) - targets).square()

    def divergences(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Squared distance to the teacher's number."""
        return (outputs - teacher.detach()).squeeze(1).square()

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """Squared and absolute errors."""
        errors_R = (outputs.squeeze(1) - targets).double()
        totals = {MSE.name: errors_R.square(), MAE.name: errors_R.abs()}
        return Sums({name: (float(values_R.sum()), len(targets)) for name, values_R in totals.items()})

    def values(self, sums: Sums) -> dict[str, float]:
        """Both errors in the unit of the targets, and the loss as it is learned."""
        mse = sums.mean(MSE.name)
        return {RMSE.name: self.scale * math.sqrt(mse), MAE.name: self.scale * sums.mean(MAE.name), MSE.name: mse}

    def details(
        self, answered: Iterable[Answered], class_names: Sequence[str], clients: Tensor | None = None
    ) -> Details:
        """The measures of an evaluation and, where targets differ, the share of their variance that is explained."""
        from sklearn.metrics import r2_score

        batches = [(batch.rows, batch.outputs.cpu(), batch.targets.cpu()) for batch in answered]
        rows, outputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))

        def over(places: NDArray[np.int64]) -> dict[str, float]:
            some, truth = outputs[places], targets[places]
            measures = self.values(self.sums(some, truth))
            if len(truth.unique()) > 1:
                measures[R2.name] = float(r2_score(truth.double().numpy(), some.squeeze(1).double().numpy()))
            return measures

        of_clients = {
            client: {**over(places), "num_examples": len(places)} for client, places in by_owner(rows, clients)
        }
        return Details(over(np.arange(len(rows))), by_client=of_clients)

    def confidence(self, outputs: Tensor) -> Tensor:
        """Numbers do not say how sure they are.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a regression does not say how sure it is, so that no exit can be chosen by confidence.",
            hint="ask for an exit or within a budget.",
        )

    def answers(self, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> list[Answer]:
        """The numbers, in the unit of the targets."""
        return [Estimate(value, exit) for value in self._told(outputs.squeeze(1))]

    def records(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float]]:
        """True and predicted number."""
        pairs = zip(self._told(targets), self._told(outputs.squeeze(1)), strict=True)
        return [{"target": target, "predicted": predicted} for target, predicted in pairs]

    def _told(self, values: Tensor) -> list[float]:
        """What the model learns, in the unit of the targets."""
        numbers: list[float] = (self.offset + self.scale * values.double()).tolist()
        return numbers

    def _numbers(self, values: NDArray[np.float64], edges: NDArray[np.float64]) -> Numbers:
        learned = torch.from_numpy((values - self.offset) / self.scale).float()
        return Numbers(learned, torch.from_numpy(np.digitize(values, edges)))


def _problems(column: TargetColumn) -> list[str]:
    kinds = sorted({type(value).__name__ for value in column.values if value is not None})
    what = f"{column.what}: target column {column.name!r}"
    classes = '; classes are predicted with `task.name` = "classification"'
    if column.class_names is not None:
        return [f"{what} holds class labels, expected numbers{classes}"]
    if kinds == ["int"]:
        advice = f"write them as 3.0 where they are amounts{classes}"
        return [f"{what} holds whole numbers, which may be those of classes, expected a decimal point: {advice}"]
    words = {row: value for row, value in enumerate(column.values) if isinstance(value, str) and not _is_number(value)}
    if kinds == ["str"] and 0 < 2 * len(words) < len(column.values):
        found = f"{next(iter(words.values()))!r} or the like in {len(words)} rows: rows {listed(list(words))}"
        return [f"{what} holds {found}, expected a number in each row"]
    if kinds != ["float"]:
        return [f"{what} holds {listed(kinds) or 'nothing'}, expected numbers{classes}"]
    missing = [row for row, value in enumerate(column.values) if value is None]
    infinite = [row for row, value in enumerate(column.values) if isinstance(value, float) and not math.isfinite(value)]
    broken = {"no number": missing, "NaN or infinity": infinite}
    return [f"{what} holds {kind} in {len(rows)} rows: rows {listed(rows)}" for kind, rows in broken.items() if rows]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _range_names(edges: NDArray[np.float64]) -> tuple[str, ...]:
    shown = [f"{edge:.4g}" for edge in edges]
    between = (f"{low} to {high}" for low, high in pairwise(shown))
    return (f"below {shown[0]}", *between, f"from {shown[-1]}")
