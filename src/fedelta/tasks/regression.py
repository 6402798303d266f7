"""Regression to one number: squared error as the loss, its root in the unit of the targets as the primary measure.

    loss = (output - (target - offset) / scale)^2,    prediction = offset + scale * output

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
from fedelta.tasks.details import Answered, Details, by_client
from fedelta.tasks.targets import ReadTargets, TargetColumn

RMSE = Measure("rmse", "root mean squared error", higher_is_better=False)
MAE = Measure("mae", "mean absolute error", higher_is_better=False)
MSE = Measure("mse", "scaled squared error", higher_is_better=False)  # the loss: in units of `scale` squared
R2 = Measure("r2", "coefficient of determination")

_NUM_RANGES = 10  # strata of targets, with equally many rows of the training set


@dataclass(frozen=True)
class Numbers:
    """The target number of each row.

    Args:
        values: (target - offset) / scale, float32 of shape [N].
        strata: number of the range that the target is in, int64 of shape [N].
    """

    values: Tensor
    strata: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, rows: Tensor) -> Tensor:
        """The scaled targets of `rows`."""
        return self.values[rows]

    def select(self, rows: Tensor) -> Numbers:
        """The targets of `rows` alone."""
        return Numbers(self.values[rows], self.strata[rows])


@dataclass(frozen=True)
class Estimate:
    """The predicted number of one example.

    Args:
        value: in the unit of the targets.
        exit: number of the exit that answered, from 1; None for a model without exits.
    """

    value: float
    exit: int | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The number."""
        return (f"{self.value:.6g}",)


class Regression(Settings):
    """Regression to one number: section `[task]`.

    Args:
        offset: roughly the mean of the targets.
        scale: roughly their standard deviation. A new head starts with outputs near 0 and changes in small steps, so
            unscaled targets are learned slowly.
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
        """A classifier with one output; the hub has no tag for regression."""
        loader = LOADERS.get(modality)
        return None if loader is None else Loader(loader.families, loader.auto_class, None, loader.peft_task)

    def num_outputs(self, class_names: Sequence[str]) -> int:
        """One."""
        return 1

    def candidates(self, columns: Mapping[str, str | None]) -> list[str]:
        """The columns named `target` and `label`."""
        return [name for name in ("target", "label") if name in columns]

    def targets(self, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
        """The scaled targets, in ranges that hold equally many rows of the training set."""
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
        """The squared error of each row, scaled."""
        return (outputs.squeeze(1) - targets).square()

    def weights(self, targets: Tensor) -> Tensor | None:
        """None: all rows count alike."""

    def divergences(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The squared distance of each row to the teacher's output, scaled."""
        return (outputs - teacher.detach()).squeeze(1).square()

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """Summed squared and absolute errors, scaled."""
        errors_R = (outputs.squeeze(1) - targets).double()
        totals = {MSE.name: errors_R.square(), MAE.name: errors_R.abs()}
        return Sums({name: (float(values_R.sum()), len(targets)) for name, values_R in totals.items()})

    def values(self, sums: Sums) -> dict[str, float]:
        """Root mean squared and mean absolute error in the unit of the targets, and the scaled loss."""
        mse = sums.mean(MSE.name)
        return {RMSE.name: self.scale * math.sqrt(mse), MAE.name: self.scale * sums.mean(MAE.name), MSE.name: mse}

    def details(
        self, answered: Iterable[Answered], class_names: Sequence[str], clients: Tensor | None = None
    ) -> Details:
        """The measures of an evaluation, overall and by client, and R2 where the targets are not all equal."""
        from sklearn.metrics import r2_score

        batches = [(batch.rows, batch.outputs.cpu(), batch.targets.cpu()) for batch in answered]
        rows, outputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))

        def over(places: NDArray[np.int64]) -> dict[str, float]:
            predicted, truth = outputs[places], targets[places]
            measures = self.values(self.sums(predicted, truth))
            if len(truth.unique()) > 1:
                measures[R2.name] = float(r2_score(truth.double().numpy(), predicted.squeeze(1).double().numpy()))
            return measures

        of_clients = {
            client: {**over(places), "num_examples": len(places)} for client, places in by_client(rows, clients)
        }
        return Details(over(np.arange(len(rows))), by_client=of_clients)

    def confidence(self, outputs: Tensor) -> Tensor:
        """Not defined for regression.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a regression gives no confidence, so exits cannot be chosen by confidence.",
            hint="choose a fixed exit or a budget instead.",
        )

    def answers(self, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> list[Answer]:
        """The predicted number of each row, in the unit of the targets."""
        return [Estimate(value, exit) for value in self._unscaled(outputs.squeeze(1))]

    def records(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float]]:
        """True and predicted number of each row, in the unit of the targets."""
        pairs = zip(self._unscaled(targets), self._unscaled(outputs.squeeze(1)), strict=True)
        return [{"target": target, "predicted": predicted} for target, predicted in pairs]

    def _unscaled(self, values: Tensor) -> list[float]:
        """Scaled values in the unit of the targets."""
        numbers: list[float] = (self.offset + self.scale * values.double()).tolist()
        return numbers

    def _numbers(self, values: NDArray[np.float64], edges: NDArray[np.float64]) -> Numbers:
        scaled = torch.from_numpy((values - self.offset) / self.scale).float()
        return Numbers(scaled, torch.from_numpy(np.digitize(values, edges)))


def _problems(column: TargetColumn) -> list[str]:
    kinds = sorted({type(value).__name__ for value in column.values if value is not None})
    what = f"{column.what}: target column {column.name!r}"
    classes = '; to predict classes, set `task.name` = "classification"'
    if column.class_names is not None:
        return [f"{what} holds class labels, expected numbers{classes}"]
    if kinds == ["int"]:
        advice = f"write amounts with a decimal point, such as 3.0{classes}"
        return [f"{what} holds integers, which may be class numbers, expected floats: {advice}"]
    words = {row: value for row, value in enumerate(column.values) if isinstance(value, str) and not _is_number(value)}
    if kinds == ["str"] and 0 < 2 * len(words) < len(column.values):
        example, rows = repr(next(iter(words.values()))), listed(list(words))
        return [f"{what} holds text such as {example} in {len(words)} rows: rows {rows}; expected a number in each row"]
    if kinds != ["float"]:
        return [f"{what} holds {listed(kinds) or 'no values'}, expected numbers{classes}"]
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
