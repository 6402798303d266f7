"""A loss function of the caller's own, which measures and trains: `fedelta.federate(..., loss=...)`.

The outputs of the model are, for the engine, the loss of each row ([R, 1]): the caller's function computes them
(`models/objects.py: ByLoss`), and a target is of no further use.

Shapes: R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedelta.errors import InputError
from fedelta.settings import Context, Settings
from fedelta.settings.paths import is_in_python
from fedelta.tasks.base import Answer, Loader, Measure, Sums
from fedelta.tasks.classification import LOADERS
from fedelta.tasks.details import Answered, Details, by_client
from fedelta.tasks.targets import ReadTargets, TargetColumn

LOSS = Measure("test_loss", "loss", higher_is_better=False)


@dataclass(frozen=True)
class NoTargets:
    """Rows whose targets the loss function reads by itself.

    Args:
        num_rows: N.
    """

    num_rows: int

    def __len__(self) -> int:
        return self.num_rows

    def fetch(self, rows: Tensor) -> Tensor:
        """A one for each of `rows`."""
        return torch.ones(len(rows))

    def select(self, rows: Tensor) -> NoTargets:
        """As many as `rows`."""
        return NoTargets(len(rows))

    @property
    def strata(self) -> None:
        """None: the rows have no kinds that are known."""
        return None


@dataclass(frozen=True)
class RowLoss:
    """The loss of an example.

    Args:
        loss: as the caller's function gives it.
        exit: None.
    """

    loss: float
    exit: int | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The loss."""
        return (f"{self.loss:.6g}",)


class OwnLoss(Settings):
    """A loss function of the caller's own: section `[task]` of a run that was started in Python with `loss=`."""

    name: Literal["own-loss"] = "own-loss"
    primary: ClassVar[Measure] = LOSS
    loss: ClassVar[Measure] = LOSS
    measured: ClassVar[Mapping[str, Measure]] = {LOSS.name: LOSS}
    stratum: ClassVar[tuple[str, str]] = ("kind", "kinds")
    output: ClassVar[tuple[str, str]] = ("loss of a row", "losses of a row")
    has_classes: ClassVar[bool] = False
    column: ClassVar[str] = "what the loss function reads"

    def problems(self, context: Context) -> list[str]:
        """Reports a model that is read from a file, and so has no loss function."""
        source = context.get("model.source")
        if "model" not in context or is_in_python(source):
            return []
        problem = f"`task.name` is 'own-loss', but the model is {source!r}"
        return [f"{problem}; a loss function is given in Python: `fedelta.federate(model, clients, test, loss=...)`"]

    def loader(self, modality: str) -> Loader | None:
        """A classifier: what any model with outputs is, if it is to be read from files."""
        return LOADERS.get(modality)

    def num_outputs(self, class_names: Sequence[str]) -> int:
        """One: the loss of a row."""
        return 1

    def candidates(self, columns: Mapping[str, str | None]) -> list[str]:
        """None."""
        return []

    def plain(self, column: TargetColumn) -> TargetColumn:
        """The column."""
        return column

    @property
    def automatic(self) -> tuple[str, ...]:
        """None."""
        return ()

    def statistics(self, targets: object, class_names: Sequence[str]) -> Sums:
        """None: nothing is left to the training data."""
        return Sums()

    def settled(self, statistics: Sums, class_names: Sequence[str]) -> OwnLoss:
        """The task itself."""
        return self

    def targets(self, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
        """No targets; of a column, only that it holds something."""
        columns = [train] if test is None else [train, test]
        problems = [
            f"{column.what}: column {column.name!r} holds nothing"
            for column in columns
            if all(value is None for value in column.values)
        ]
        rows = [NoTargets(len(column.values)) for column in columns]
        return ReadTargets(rows[0], None if test is None else rows[1], (), (), tuple(problems))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the function gave."""
        return outputs[:, 0]

    def weights(self, targets: Tensor) -> Tensor | None:
        """None: all rows count alike."""

    def divergences(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The distance of the losses of each row; such models have no exits."""
        return (outputs - teacher.detach())[:, 0].square()

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """The sum of the losses, and their number."""
        return Sums({LOSS.name: (float(outputs.double().sum()), float(len(outputs)))})

    def values(self, sums: Sums) -> dict[str, float]:
        """The mean loss."""
        return {LOSS.name: sums.mean(LOSS.name)}

    def details(
        self, answered: Iterable[Answered], class_names: Sequence[str], clients: Tensor | None = None
    ) -> Details:
        """The mean loss, overall and by client."""
        batches = [(batch.rows, batch.outputs.cpu(), batch.targets.cpu()) for batch in answered]
        rows, outputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        of_clients = {
            client: {**self.values(self.sums(outputs[places], targets[places])), "num_examples": len(places)}
            for client, places in by_client(rows, clients)
        }
        return Details(self.values(self.sums(outputs, targets)), by_client=of_clients)

    def confidence(self, outputs: Tensor) -> Tensor:
        """Not defined for a loss.

        Raises:
            InputError: always.
        """
        raise InputError("a loss function gives no confidence.", hint="leave the option out.")

    def answers(self, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> list[Answer]:
        """The loss of each row."""
        return [RowLoss(loss, exit) for loss in outputs[:, 0].double().tolist()]

    def records(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float]]:
        """The loss of each row."""
        return [{LOSS.name: loss} for loss in outputs[:, 0].double().tolist()]
