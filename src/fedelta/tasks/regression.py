"""Regression to one number or to several: squared error as the loss, its root as the primary measure.

    loss = mean over k of (output_k - (target_k - offset_k) / scale_k)^2
    prediction_k = offset_k + scale_k * output_k

`offset` and `scale` are mean and standard deviation of all clients' training targets, unless they are set. For that
clients share no row, but the sums of their targets and of the squares.

Shapes: R rows, K numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor

from fedelta.errors import ConfigError, InputError, listed
from fedelta.settings import Context, Settings
from fedelta.tasks.base import Answer, Loader, Measure, Sums
from fedelta.tasks.classification import LOADERS
from fedelta.tasks.details import Answered, Details, Values, by_client
from fedelta.tasks.numbers import read_numbers
from fedelta.tasks.targets import ReadTargets, TargetColumn, Targets

RMSE = Measure("rmse", "root mean squared error", higher_is_better=False)
MAE = Measure("mae", "mean absolute error", higher_is_better=False)
MSE = Measure("mse", "scaled squared error", higher_is_better=False)  # the loss: in units of `scale` squared
R2 = Measure("r2", "coefficient of determination")

_ROUNDING = 1e-9  # a sum of squares around the mean that is smaller than this share of the squares is rounding error

OneOrMore = float | tuple[float, ...]
Positive = Annotated[FiniteFloat, Field(gt=0)]


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


@dataclass(frozen=True)
class Estimates:
    """Several predicted numbers of one example.

    Args:
        values: name of a number to its value, in the unit of the targets.
        exit: number of the exit that answered, from 1; None for a model without exits.
    """

    values: Mapping[str, float]
    exit: int | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """Each number, after its name."""
        return tuple(f"{name} {value:.6g}" for name, value in self.values.items())


class Regression(Settings):
    """Regression to one number or to several: section `[task]`.

    Args:
        offset: roughly the mean of the targets, one number for all or one for each; by default their mean.
        scale: roughly their standard deviation, likewise; by default that. A new head starts with outputs near 0 and
            changes in small steps, so unscaled targets are learned slowly.
    """

    name: Literal["regression"] = "regression"
    offset: FiniteFloat | Annotated[tuple[FiniteFloat, ...], Field(strict=False, min_length=1)] | None = None
    scale: Positive | Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] | None = None
    primary: ClassVar[Measure] = RMSE
    loss: ClassVar[Measure] = MSE
    measured: ClassVar[Mapping[str, Measure]] = {measure.name: measure for measure in (RMSE, MAE, MSE, R2)}
    stratum: ClassVar[tuple[str, str]] = ("range", "ranges")
    output: ClassVar[tuple[str, str]] = ("number", "numbers")
    has_classes: ClassVar[bool] = False
    column: ClassVar[str] = "numbers named 'target' or 'label'"

    def problems(self, context: Context) -> list[str]:
        """Reports statistics of the clients' targets that no noise would cover."""
        if not context.get("privacy.is_on") or not self.automatic:
            return []
        names = " and ".join(f"`task.{name}`" for name in self.automatic)
        return [f"{names} would follow from the clients' targets, which `[privacy]` protects; set them"]

    def loader(self, modality: str) -> Loader | None:
        """A classifier with an output for each number; the hub has no tag for regression."""
        loader = LOADERS.get(modality)
        return None if loader is None else Loader(loader.families, loader.auto_class, None, loader.peft_task)

    def num_outputs(self, class_names: Sequence[str]) -> int:
        """One for each name; one without names."""
        return max(1, len(class_names))

    def candidates(self, columns: Mapping[str, str | None]) -> list[str]:
        """The columns named `target` and `label`."""
        return [name for name in ("target", "label") if name in columns]

    def plain(self, column: TargetColumn) -> TargetColumn:
        """The column itself: numbers are no labels."""
        return column

    @property
    def automatic(self) -> tuple[str, ...]:
        """Offset and scale, where they are not set."""
        return tuple(name for name in ("offset", "scale") if getattr(self, name) is None)

    def statistics(self, targets: Targets, class_names: Sequence[str]) -> Sums:
        """The sum of each number and that of its squares, with the number of rows."""
        values = targets.fetch(torch.arange(len(targets))).double()
        return Sums(_moments("target", values)) if self.automatic else Sums()

    def settled(self, statistics: Sums, class_names: Sequence[str]) -> Regression:
        """With an offset and a scale for each number."""
        width = self.num_outputs(class_names)
        wrong = [
            f"`task.{name}` has {len(value)} numbers, but a row has {width}"
            for name in ("offset", "scale")
            if isinstance(value := getattr(self, name), tuple) and len(value) != width
        ]
        if wrong:
            raise ConfigError(wrong, hint="give one for each, or a single number for all.")
        offset, scale = self.offset, self.scale
        if self.automatic:
            names = class_names or ("target",)
            offset = _means(statistics, width) if offset is None else offset
            scale = _deviations(statistics, names) if scale is None else scale
        each = {"offset": _each(offset, width), "scale": _each(scale, width)}
        return self.model_copy(update={key: value if width > 1 else value[0] for key, value in each.items()})

    def targets(self, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
        """The numbers, in ranges of the first one that hold equally many rows of the training set."""
        return read_numbers(train, test)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The squared error of each row, scaled; the mean over the numbers."""
        return (outputs - self._scaled(targets).float()).square().mean(1)

    def weights(self, targets: Tensor) -> Tensor | None:
        """None: all rows count alike."""

    def divergences(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The squared distance of each row to the teacher's output, scaled."""
        return (outputs - teacher.detach()).square().mean(1)

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """Of each number squared and absolute errors, the target and its square; all scaled."""
        scaled = self._scaled(targets)
        errors = outputs.double() - scaled
        totals = {MSE.name: (float(errors.square().mean(1).sum()), float(len(targets)))}
        return Sums(totals | _moments("error", errors) | _moments("target", scaled))

    def values(self, sums: Sums) -> dict[str, float]:
        """Root mean squared and mean absolute error in the unit of the targets, the scaled loss, and R2.

        The first two and the last are means over the numbers; R2 over those whose targets are not all equal.
        """
        of_numbers = [self._of_number(sums, number) for number in range(len(self._scales))]
        names = (RMSE.name, MAE.name, R2.name)
        defined = {name: [value for values in of_numbers if (value := values[name]) is not None] for name in names}
        means = {name: math.fsum(values) / len(values) for name, values in defined.items() if values}
        return {
            RMSE.name: means[RMSE.name],
            MAE.name: means[MAE.name],
            MSE.name: sums.mean(MSE.name),
            **({R2.name: means[R2.name]} if R2.name in means else {}),
        }

    def details(
        self, answered: Iterable[Answered], class_names: Sequence[str], clients: Tensor | None = None
    ) -> Details:
        """The measures of an evaluation overall, by client and, if there are several numbers, by number."""
        batches = [(batch.rows, batch.outputs.cpu(), batch.targets.cpu()) for batch in answered]
        rows, outputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        sums = self.sums(outputs, targets)
        of_clients = {
            client: {**self.values(self.sums(outputs[places], targets[places])), "num_examples": len(places)}
            for client, places in by_client(rows, clients)
        }
        of_numbers: dict[str, Values] = {
            name: {**self._of_number(sums, number), "num_examples": len(rows)}
            for number, name in enumerate(class_names)
        }
        return Details(self.values(sums), of_numbers, of_clients)

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
        """The predicted numbers of each row, in the unit of the targets."""
        rows = self._unscaled(outputs)
        if not class_names:
            return [Estimate(value, exit) for (value,) in rows]
        return [Estimates(dict(zip(class_names, row, strict=True)), exit) for row in rows]

    def records(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float]]:
        """True and predicted numbers of each row, in the unit of the targets."""
        endings = [f" {name}" for name in class_names] or [""]
        return [
            {f"target{ending}": value for ending, value in zip(endings, truth, strict=True)}
            | {f"predicted{ending}": value for ending, value in zip(endings, row, strict=True)}
            for truth, row in zip(targets.tolist(), self._unscaled(outputs), strict=True)
        ]

    @property
    def _offsets(self) -> tuple[float, ...]:
        return _each(self.offset, 1)

    @property
    def _scales(self) -> tuple[float, ...]:
        return _each(self.scale, 1)

    def _scaled(self, targets: Tensor) -> Tensor:
        """(target - offset) / scale, float64."""
        offset, scale = (
            torch.tensor(each, dtype=torch.float64, device=targets.device) for each in (self._offsets, self._scales)
        )
        return (targets.double() - offset) / scale

    def _unscaled(self, outputs: Tensor) -> list[list[float]]:
        """Outputs in the unit of the targets."""
        offset, scale = (torch.tensor(each, dtype=torch.float64) for each in (self._offsets, self._scales))
        numbers: list[list[float]] = (offset + scale * outputs.cpu().double()).tolist()
        return numbers

    def _of_number(self, sums: Sums, number: int) -> dict[str, float | None]:
        """The measures of one number; R2 is None if its targets are all equal."""
        scale, squared_error = self._scales[number], sums.mean(f"squared error {number}")
        error, around = sums.totals[f"squared error {number}"][0], _around_mean(sums, number)
        return {
            RMSE.name: scale * math.sqrt(squared_error),
            MAE.name: scale * sums.mean(f"absolute error {number}"),
            R2.name: None if around is None else 1 - error / around,
        }


def _moments(what: str, values: Tensor) -> dict[str, tuple[float, float]]:
    """For each number the sum of its values, of their sizes and of their squares, with the number of rows."""
    totals = {"": values.sum(0), "absolute ": values.abs().sum(0), "squared ": values.square().sum(0)}
    return {
        f"{kind}{what} {number}": (total, float(len(values)))
        for kind, sums in totals.items()
        for number, total in enumerate(sums.tolist())
    }


def _around_mean(sums: Sums, number: int) -> float | None:
    """The sum of squared distances of a target to its mean; None if it is constant."""
    (total, count), (squares, _) = (sums.totals[f"{kind}target {number}"] for kind in ("", "squared "))
    around = squares - total * total / count
    return around if around > _ROUNDING * squares else None


def _means(statistics: Sums, width: int) -> tuple[float, ...]:
    return tuple(statistics.mean(f"target {number}") for number in range(width))


def _deviations(statistics: Sums, names: Sequence[str]) -> tuple[float, ...]:
    """The standard deviation of each number.

    Raises:
        ConfigError: a number hardly differs from row to row.
    """
    squares = [_around_mean(statistics, number) for number in range(len(names))]
    if constant := [name for name, square in zip(names, squares, strict=True) if square is None]:
        problem = (
            f"the scale of {listed(constant)} cannot be calculated: the clients' targets are all the same, or nearly"
        )
        raise ConfigError([problem], hint="set `task.offset` and `task.scale`, or leave this number out.")
    count = statistics.totals["target 0"][1]
    return tuple(math.sqrt(square / count) for square in squares if square is not None)


def _each(value: OneOrMore | None, width: int) -> tuple[float, ...]:
    """A number for each of `width` targets.

    Raises:
        ValueError: the task is not settled.
    """
    if value is None:
        raise ValueError("offset and scale are not settled yet: call `settled` first")
    return value if isinstance(value, tuple) else (value,) * width
