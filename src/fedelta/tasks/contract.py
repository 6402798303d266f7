"""Checks the losses of a task in each step, so that errors name a plug-in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedelta.errors import PluginError
from fedelta.plugins import called, returned, wrong_result
from fedelta.tasks.base import Answer, Evaluation, Sums, Task
from fedelta.tasks.targets import ReadTargets, TargetColumn, Targets


def losses_of(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """`Task.losses`: one number for each row of `outputs`, [R].

    Raises:
        PluginError: the result is something else, or has no gradient.
    """
    losses: object = task.losses(outputs, targets)
    if not isinstance(losses, Tensor):
        result = type(losses).__name__
    elif outputs.requires_grad and not losses.requires_grad:
        result = f"a tensor {tuple(losses.shape)} without a gradient"
    elif losses.shape == outputs.shape[:1]:
        return losses
    else:
        result = f"a tensor {tuple(losses.shape)}"
    raise PluginError(
        f"{called(task)}: `losses` returned {result}, expected a loss for each of {len(outputs)} rows, "
        f"{tuple(outputs.shape[:1])}, with gradients.",
        hint='losses of PyTorch return this with `reduction="none"`.',
    )


def weights_of(task: Task, targets: Tensor) -> Tensor | None:
    """`Task.weights`: one number for each row of `targets`, [R], or None.

    Raises:
        PluginError: the result is something else.
    """
    weights: object = task.weights(targets)
    if weights is None or (isinstance(weights, Tensor) and weights.shape == targets.shape[:1]):
        return weights
    result = f"a tensor {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
    expected = f"None, or a weight for each of {len(targets)} rows, {tuple(targets.shape[:1])}"
    raise wrong_result(task, "weights", result, expected)


def targets_of(task: Task, train: TargetColumn, test: TargetColumn | None) -> ReadTargets:
    """`Task.targets`."""
    return returned(task, "targets", task.targets(train, test), ReadTargets)


def statistics_of(task: Task, targets: Targets, class_names: Sequence[str]) -> Sums:
    """`Task.statistics`, as Python's numbers."""
    statistics = returned(task, "statistics", task.statistics(targets, class_names), Sums)
    return _in_numbers(task, "statistics", statistics)


def settled_of(task: Task, statistics: Sums, class_names: Sequence[str]) -> Task:
    """`Task.settled`: a task of the same class, with nothing left to settle.

    Raises:
        PluginError: it gives something else.
    """
    settled = returned(task, "settled", task.settled(statistics, class_names), type(task))
    if settled.automatic:
        raise wrong_result(task, "settled", f"a task that leaves {list(settled.automatic)} open", "a settled task")
    return settled


def sums_of(task: Task, outputs: Tensor, targets: Tensor) -> Sums:
    """`Task.sums`, as Python's numbers, which every process has alike.

    Raises:
        PluginError: it gives something else.
    """
    return _in_numbers(task, "sums", returned(task, "sums", task.sums(outputs, targets), Sums))


def _in_numbers(task: Task, method: str, sums: Sums) -> Sums:
    try:
        return Sums({str(name): (float(total), float(weight)) for name, (total, weight) in sums.totals.items()})
    except (AttributeError, TypeError, ValueError, RuntimeError):
        raise wrong_result(task, method, f"totals {sums.totals!r:.80}", "a number and its weight by name") from None


def values_of(task: Task, sums: Sums) -> dict[str, float]:
    """`Task.values`: numbers by name, with the primary measure and the loss.

    Raises:
        PluginError: it gives something else.
    """
    values: object = task.values(sums)
    numbers = values if isinstance(values, Mapping) else {}
    wrong = [name for name, value in numbers.items() if isinstance(value, bool) or not isinstance(value, int | float)]
    needed = (task.primary.name, task.loss.name)
    if wrong or any(name not in numbers for name in needed):
        names = " and ".join(f"`{name}`" for name in dict.fromkeys(needed))
        raise wrong_result(task, "values", repr(values)[:80], f"numbers by name, {names} among them")
    if unknown := [name for name in numbers if name not in task.measured]:
        raise wrong_result(task, "values", f"a measure {unknown[0]!r}", f"those in `measured`: {list(task.measured)}")
    return dict(numbers)


def evaluation_of(task: Task, sums: Sequence[Sums], *, has_exits: bool) -> Evaluation:
    """The measures of the sums at each exit, lowest exit first; of the only sums for a model without exits."""
    measures = [values_of(task, total) for total in sums]
    primary = task.primary.name
    return Evaluation(measures[-1], {primary: tuple(at_exit[primary] for at_exit in measures)} if has_exits else {})


def answers_of(task: Task, outputs: Tensor, class_names: Sequence[str], exit: int | None) -> list[Answer]:
    """`Task.answers`: one for each row.

    Raises:
        PluginError: it gives something else.
    """
    answers: object = task.answers(outputs, class_names, exit)
    if not isinstance(answers, list) or len(answers) != len(outputs):
        result = f"{len(answers)} answers" if isinstance(answers, list) else type(answers).__name__
        raise wrong_result(task, "answers", result, f"a list with an answer for each of {len(outputs)} rows")
    return answers
