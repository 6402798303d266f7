"""A task that breaks a contract is told by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import pytest
import torch
from tests.testing.broken import broken
from torch import Tensor

from fedelta.tasks.base import Answer, Loader, Measure, Sums
from fedelta.tasks.classification import ACCURACY, LOSS, Classification
from fedelta.tasks.details import Answered, Details
from fedelta.tasks.targets import ReadTargets, TargetColumn
from fedelta.testing import check


class Refusing(Classification):
    def targets(self, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
        return ReadTargets(super().targets(train, test).train, None, (), (), ("not this one",))


class Raising(Classification):
    def targets(self, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
        if train.values[0] is None:
            raise ValueError("no values")
        return super().targets(train, test)


class Inventing(Classification):
    def candidates(self, columns: Mapping[str, str | None]) -> list[str]:
        return ["label"]


class Homeless(Classification):
    def loader(self, modality: str) -> Loader | None:
        return None


class Headless(Classification):
    def num_outputs(self, class_names: Sequence[str]) -> int:
        return 0


class Scalar(Classification):
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().losses(outputs, targets).mean()


class Column(Classification):
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().losses(outputs, targets).unsqueeze(1)


class Constant(Classification):
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().losses(outputs.detach(), targets)


class Relative(Classification):
    """Of a row, compared with its batch."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = super().losses(outputs, targets)
        return losses / losses.mean()


class Upward(Classification):
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 10 - super().losses(outputs, targets)


class OfBatches(Classification):
    """As if a batch were a row."""

    def weights(self, targets: Tensor) -> Tensor | None:
        return torch.ones(1)


class Owing(Classification):
    def weights(self, targets: Tensor) -> Tensor | None:
        return torch.where(targets == 0, -1.0, 1.0)


class Learned(Classification):
    def weights(self, targets: Tensor) -> Tensor | None:
        return torch.ones(len(targets), requires_grad=True)


class Shared(Classification):
    """Weights that add up to 1 in each batch."""

    def weights(self, targets: Tensor) -> Tensor | None:
        return torch.full((len(targets),), 1 / len(targets))


class Unweighted(Classification):
    """Weights that its loss in an evaluation leaves out."""

    def weights(self, targets: Tensor) -> Tensor | None:
        return targets.float()

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        return Classification().sums(outputs, targets)


class BatchMeans(Classification):
    """A mean as if it were a sum."""

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        totals = super().sums(outputs, targets).totals
        return Sums({name: (total / weight, 1) for name, (total, weight) in totals.items()})


class Backward(Classification):
    def values(self, sums: Sums) -> dict[str, float]:
        return dict(reversed(super().values(sums).items()))


class Unmeasured(Classification):
    measured: ClassVar[Mapping[str, Measure]] = {ACCURACY.name: ACCURACY}


class Proud(Classification):
    loss: ClassVar[Measure] = ACCURACY


class Halved(Classification):
    def values(self, sums: Sums) -> dict[str, float]:
        values = super().values(sums)
        return values | {LOSS.name: values[LOSS.name] / 2}


class Sketchy(Classification):
    def details(
        self, answered: Iterable[Answered], class_names: Sequence[str], clients: Tensor | None = None
    ) -> Details:
        first = next(iter(answered))
        return super().details([first], class_names, clients)


class Taught(Classification):
    def divergences(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        return (outputs - teacher).square().sum(-1)


class Distant(Classification):
    def divergences(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        return super().divergences(outputs, teacher) + 1


class Terse(Classification):
    def answers(self, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> list[Answer]:
        return super().answers(outputs[:1], class_names, exit)


class Exitless(Classification):
    def answers(self, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> list[Answer]:
        return super().answers(outputs, class_names, None)


class Unwritable(Classification):
    def records(self, outputs: Tensor, targets: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float]]:
        return [{"predicted": row} for row in outputs]


class Overconfident(Classification):
    def confidence(self, outputs: Tensor) -> Tensor:
        return outputs.max(1).values * 10


class Drawing(Classification):
    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        torch.rand(1)
        return super().sums(outputs, targets)


class InPlace(Classification):
    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        outputs.sub_(1)
        return super().sums(outputs, targets)


LOSSES = "losses are one finite number a row"
WEIGHTS = "weights are one number a row that depends on that row alone"
MEASURES = "measures are those that it announces"
ANSWERS = "there is an answer for each row"


@pytest.mark.parametrize(
    ("task", "sentence", "problem"),
    [
        (Refusing, "it reads a column of a kind that data sets have", "class labels: not this one; texts: not this"),
        (Raising, "what is wrong with a column is told and not raised", "ends with ValueError: no values"),
        (Inventing, "candidates are columns that there are", "Of the columns ['target'] it names ['label']"),
        (Homeless, "there is a kind of model for it", "gives None for images, texts and recordings"),
        (Headless, "the number of outputs is at least one", "It is 0"),
        (Scalar, LOSSES, "For 12 rows they have the shape (), expected (12,)"),
        (Column, LOSSES, "For 12 rows they have the shape (12, 1), expected (12,)"),
        (Constant, LOSSES, "No gradient leads from them to the outputs"),
        (Relative, "the loss of a row depends on that row alone", "in a batch, and 1.0000 alone"),
        (Upward, "measures are those that it announces", "and `losses`"),
        (OfBatches, WEIGHTS, "For 12 rows they have the shape (1,), expected (12,)."),
        (Owing, WEIGHTS, "A weight is negative or not finite."),
        (Learned, WEIGHTS, "They have a gradient."),
        (Shared, WEIGHTS, "The weight of a row in a batch is not the one that it has alone."),
        (Unweighted, MEASURES, "`loss_nats` is"),
        (BatchMeans, "sums of batches add up to those of the whole set", "of all rows at once"),
        (Backward, MEASURES, "They are ['loss_nats', 'accuracy'], expected 'accuracy' first"),
        (Unmeasured, MEASURES, "`measured` lacks ['loss_nats']"),
        (Proud, MEASURES, "The loss 'accuracy' is said to be better where it is higher"),
        (Halved, MEASURES, "`loss_nats` is"),
        (Sketchy, "details hold the measures of an evaluation", "there, expected"),
        (Taught, "divergences are zero from itself and positive from another", "use `teacher.detach()`"),
        (
            Distant,
            "divergences are zero from itself and positive from another",
            "From equal outputs they are up to 1.0",
        ),
        (Terse, ANSWERS, "For 12 rows there are 1 answers"),
        (Exitless, ANSWERS, "At exit 2 the answers say that they come from {None}"),
        (Unwritable, ANSWERS, "ends with TypeError"),
        (Overconfident, "confidence is between zero and one or refused", "It goes from"),
        (Drawing, "equal outputs give equal bits", "draws from the global generator of torch"),
        (InPlace, "equal outputs give equal bits", "The second time"),
    ],
)
def test_a_broken_task_breaks_its_contract(task: type[Classification], sentence: str, problem: str):
    assert problem in broken(task, only=sentence)[sentence]


class Increasing(Classification):
    """A loss whose gradient leads upwards."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = super().losses(outputs, targets)
        return 2 * losses.detach() - losses


def test_a_gradient_that_increases_the_loss_is_detected():
    sentence = "a step against the gradient lowers the loss"
    assert "It goes from" in broken(Increasing, only=sentence)[sentence]


def test_a_task_that_keeps_every_contract_passes():
    check(Classification)
