"""Contracts of tasks, tried on random outputs and on targets that the task reads from a column.

Shapes: R rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedelta.engine.work import lane_means
from fedelta.errors import InputError
from fedelta.seeds import stream
from fedelta.tasks.base import Sums, Task
from fedelta.tasks.contract import settled_of, statistics_of
from fedelta.tasks.details import Answered
from fedelta.tasks.targets import ReadTargets, TargetColumn
from fedelta.testing.contract import (
    BreachError,
    no_global_draws,
    require,
    same_bits,
)

_NUM_ROWS = 12
_CLASSES = [row % 3 for row in range(_NUM_ROWS)]
# Usual columns of data sets; a task has to read at least one of them.
COLUMNS = {
    "class labels": TargetColumn("label", "training set", _CLASSES, ("a", "b", "c")),
    "texts": TargetColumn("label", "training set", ["abc"[number] for number in _CLASSES]),
    "whole numbers": TargetColumn("label", "training set", _CLASSES),
    "numbers with a point": TargetColumn("target", "training set", [0.25 * row for row in range(_NUM_ROWS)]),
    "lists of labels": TargetColumn("label", "training set", [[row % 2, row % 3 % 2, 1] for row in range(_NUM_ROWS)]),
    "lists of labels of any length": TargetColumn(
        "labels", "training set", [["abc"[number] for number in range(row % 4)] for row in range(_NUM_ROWS)]
    ),
    "lists of texts": TargetColumn("label", "training set", [["abc"[row % 3], "d"] for row in range(_NUM_ROWS)]),
}


@dataclass(frozen=True)
class TaskTrial:
    """A task and its test data.

    Args:
        original: the task to test.
    """

    original: Task

    @cached_property
    def task(self) -> Task:
        """The task, settled by the targets."""
        statistics = statistics_of(self.original, self.read.train, self.read.class_names)
        return settled_of(self.original, statistics, self.read.class_names)

    @cached_property
    def read(self) -> ReadTargets:
        """The targets from the first kind of column that the task accepts."""
        refused = {}
        for kind, column in COLUMNS.items():
            read = self.original.targets(column, None)
            if not read.problems:
                return read
            refused[kind] = read.problems[0]
        raise BreachError(
            "It takes none of these columns: " + "; ".join(f"{kind}: {why}" for kind, why in refused.items())
        )

    @cached_property
    def class_names(self) -> Sequence[str]:
        """The class names, as read by the task."""
        return self.read.class_names

    @cached_property
    def targets(self) -> Tensor:
        """The targets, [R, ...]."""
        return self.read.train.fetch(torch.arange(_NUM_ROWS))

    @cached_property
    def outputs(self) -> Tensor:
        """Random outputs of a model, [R, number of outputs]; of one that reads words also by word."""
        number, generator = self.task.num_outputs(self.class_names), stream(0, "outputs")
        if self.task.loader("words") is None:
            return torch.randn(_NUM_ROWS, number, generator=generator)
        by_word = torch.randn(*self.targets.shape, number, generator=generator)
        return torch.cat([by_word, torch.ones(*self.targets.shape, 1)], dim=-1)


def it_reads_a_column_of_a_kind_that_data_sets_have(trial: TaskTrial) -> None:
    """There is one target per row, and targets can be fetched and selected."""
    targets = trial.read.train
    require(len(targets) == _NUM_ROWS, f"Of {_NUM_ROWS} rows it reads {len(targets)} targets.")
    rows = torch.tensor([3, 0, 3])
    fetched, selected = targets.fetch(rows), targets.select(rows)
    require(len(fetched) == 3 == len(selected), f"Of 3 rows it fetches {len(fetched)} and selects {len(selected)}.")
    require(same_bits(selected.fetch(torch.arange(3)), fetched), "`select` gives other rows than `fetch`.")
    strata = targets.strata
    kinds = _NUM_ROWS if strata is None else len(strata)
    require(kinds == _NUM_ROWS, f"`strata` has {kinds} entries for {_NUM_ROWS} rows.")


def what_is_wrong_with_a_column_is_told_and_not_raised(trial: TaskTrial) -> None:
    """Every kind of column, including one of missing values, gives targets or problems."""
    gaps = TargetColumn("label", "training set", [None] * _NUM_ROWS)
    require(bool(trial.task.targets(gaps, None).problems), "A column without a single value has no problem.")
    for kind, column in COLUMNS.items():
        read = trial.task.targets(column, column)
        require(bool(read.problems) or read.test is not None, f"The test set's {kind} are neither read nor refused.")


def what_is_left_to_the_data_is_settled_by_sums_over_clients(trial: TaskTrial) -> None:
    """Clients' sums add up to those of all rows; a settled task leaves nothing open and is settled to itself."""
    task, names, targets = trial.original, trial.class_names, trial.read.train
    parts = [targets.select(rows) for rows in torch.arange(_NUM_ROWS).split([5, 7])]
    sums = statistics_of(task, parts[0], names) + statistics_of(task, parts[1], names)
    whole = statistics_of(task, targets, names).totals
    for name, (total, weight) in sums.totals.items():
        same = math.isclose(total, whole.get(name, (math.nan, 0))[0], rel_tol=1e-9, abs_tol=1e-9)
        require(same and weight == whole[name][1], f"`{name}` of two clients is not that of all rows.")
    settled = settled_of(task, sums, names)
    require(not statistics_of(settled, targets, names).totals, "A settled task still asks for statistics.")
    require(settled_of(settled, Sums(), names) == settled, "A settled task is settled to another one.")


def the_number_of_outputs_is_at_least_one(trial: TaskTrial) -> None:
    """The head of the model has this number of outputs."""
    number = trial.task.num_outputs(trial.class_names)
    require(isinstance(number, int) and number >= 1, f"It is {number!r}.")


def losses_are_one_finite_number_a_row(trial: TaskTrial) -> None:
    """Of shape [R], with a gradient."""
    outputs = trial.outputs.clone().requires_grad_()
    losses = trial.task.losses(outputs, trial.targets)
    shape = tuple(losses.shape)
    require(shape == (_NUM_ROWS,), f"For {_NUM_ROWS} rows they have the shape {shape}, expected ({_NUM_ROWS},).")
    require(bool(losses.isfinite().all()), "A loss is not finite.")
    require(losses.requires_grad, "No gradient leads from them to the outputs.")
    (grads,) = torch.autograd.grad(losses.sum(), outputs)
    require(bool(grads.isfinite().all()) and bool(grads.any()), "Their gradient is zero or not finite.")


def the_loss_of_a_row_depends_on_that_row_alone(trial: TaskTrial) -> None:
    """The rows of a batch belong to several clients, or are padding."""
    losses = trial.task.losses(trial.outputs, trial.targets)
    for row in range(_NUM_ROWS):
        alone = trial.task.losses(trial.outputs[row : row + 1], trial.targets[row : row + 1])
        same = torch.allclose(alone.flatten(), losses[row : row + 1].flatten(), rtol=1e-4, atol=1e-6)
        require(
            same, f"Row {row} has the loss {losses.flatten()[row]:.4f} in a batch, and {alone.flatten()[0]:.4f} alone."
        )


def a_step_against_the_gradient_lowers_the_loss(trial: TaskTrial) -> None:
    """The mean over all rows."""
    outputs = trial.outputs.clone().requires_grad_()
    before = trial.task.losses(outputs, trial.targets).mean()
    (grads,) = torch.autograd.grad(before, outputs)
    after = trial.task.losses(outputs.detach() - 1e-2 * grads, trial.targets).mean()
    before = before.detach()
    require(float(after) < float(before), f"It goes from {float(before):.6f} to {float(after):.6f}.")


def weights_are_one_number_a_row_that_depends_on_that_row_alone(trial: TaskTrial) -> None:
    """Of shape [R], finite and not negative, without a gradient; or None, for all rows alike."""
    weights = trial.task.weights(trial.targets)
    if weights is None:
        return
    shape = tuple(weights.shape)
    require(shape == (_NUM_ROWS,), f"For {_NUM_ROWS} rows they have the shape {shape}, expected ({_NUM_ROWS},).")
    require(bool((weights.isfinite() & (weights >= 0)).all()), "A weight is negative or not finite.")
    require(not weights.requires_grad, "They have a gradient.")
    alone = [weight for target in trial.targets.split(1) if (weight := trial.task.weights(target)) is not None]
    require(same_bits(torch.cat(alone), weights), "The weight of a row in a batch is not the one that it has alone.")


def sums_of_batches_add_up_to_those_of_the_whole_set(trial: TaskTrial) -> None:
    """Measures must not depend on how rows are divided among batches, clients and sites."""
    whole = trial.task.values(trial.task.sums(trial.outputs, trial.targets))
    for sizes in ([5, 4, 3], [1] * _NUM_ROWS, [1, 11]):
        sums = Sums()
        for outputs, targets in zip(trial.outputs.split(sizes), trial.targets.split(sizes), strict=True):
            sums += trial.task.sums(outputs, targets)
        measures = trial.task.values(sums)
        for name, value in whole.items():
            same = math.isclose(measures.get(name, math.nan), value, rel_tol=1e-5, abs_tol=1e-6)
            require(same, f"In batches of {sizes} `{name}` is {measures.get(name)}, of all rows at once {value}.")


def measures_are_those_that_it_announces(trial: TaskTrial) -> None:
    """The primary measure is first, the loss is the mean of `losses` by `weights`, and all values are finite."""
    task = trial.task
    values = task.values(task.sums(trial.outputs, trial.targets))
    require(
        next(iter(values), None) == task.primary.name, f"They are {list(values)}, expected {task.primary.name!r} first."
    )
    strange = sorted({*values, task.primary.name, task.loss.name} - task.measured.keys())
    require(not strange, f"`measured` lacks {strange}.")
    misnamed = [name for name, measure in task.measured.items() if measure.name != name]
    require(not misnamed, f"`measured` has {misnamed} under another name than their own.")
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    require(not broken, f"{broken} are not finite.")
    require(not task.loss.higher_is_better, f"The loss {task.loss.name!r} is said to be better where it is higher.")
    losses, weights = task.losses(trial.outputs, trial.targets), task.weights(trial.targets)
    mean = float(lane_means(losses.double(), [_NUM_ROWS], weights))
    loss = values.get(task.loss.name, math.nan)
    require(math.isclose(loss, mean, rel_tol=1e-4, abs_tol=1e-6), f"`{task.loss.name}` is {loss}, and `losses` {mean}.")


def details_hold_the_measures_of_an_evaluation(trial: TaskTrial) -> None:
    """For the whole set; for each client they hold its number of examples."""
    batches = [
        Answered(rows, trial.outputs[rows], trial.targets[rows]) for rows in torch.arange(_NUM_ROWS).split([7, 5])
    ]
    clients = torch.tensor([row % 2 for row in range(_NUM_ROWS)])
    details = trial.task.details(iter(batches), trial.class_names, clients)
    values = trial.task.values(trial.task.sums(trial.outputs, trial.targets))
    for name, value in values.items():
        detail = details.measures.get(name, math.nan)
        same = math.isclose(detail, value, rel_tol=1e-4, abs_tol=1e-5)
        require(same, f"`{name}` is {detail} there, expected {value}.")
    counts = {client: of_client.get("num_examples") for client, of_client in details.by_client.items()}
    require(counts == {0: 6, 1: 6}, f"By client the numbers of examples are {counts}, expected 6 each.")


def divergences_are_zero_from_itself_and_positive_from_another(trial: TaskTrial) -> None:
    """Of shape [R]; only the outputs get a gradient, not the teacher."""
    outputs, teacher = trial.outputs.clone().requires_grad_(), trial.outputs.flip(0).clone().requires_grad_()
    to_itself, to_teacher = (trial.task.divergences(outputs, reference) for reference in (trial.outputs, teacher))
    to_itself = to_itself.detach()
    shape = tuple(to_teacher.shape)
    require(shape == (_NUM_ROWS,), f"For {_NUM_ROWS} rows they have the shape {shape}, expected ({_NUM_ROWS},).")
    largest = float(to_itself.abs().max())
    require(largest < 1e-5, f"From equal outputs they are up to {largest:.1e}.")
    least = float(to_teacher.detach().min())
    require(least > -1e-6 and float(to_teacher.detach().max()) > 0, f"From other outputs the least is {least:.1e}.")
    towards, taught = torch.autograd.grad(to_teacher.sum(), (outputs, teacher), allow_unused=True)
    require(towards is not None and bool(towards.any()), "No gradient leads to the outputs.")
    require(taught is None or not taught.any(), "The teacher gets a gradient; use `teacher.detach()`.")


def there_is_an_answer_for_each_row(trial: TaskTrial) -> None:
    """With its exit, cells as text, and records that JSON can hold."""
    answers = trial.task.answers(trial.outputs, trial.class_names, 2)
    require(len(answers) == _NUM_ROWS, f"For {_NUM_ROWS} rows there are {len(answers)} answers.")
    exits = {answer.exit for answer in answers}
    require(exits == {2}, f"At exit 2 the answers say that they come from {exits}.")
    cells = [cell for answer in answers for cell in answer.cells]
    require(bool(cells) and all(isinstance(cell, str) for cell in cells), f"The cells are {cells[:2]}, expected texts.")
    records = trial.task.records(trial.outputs, trial.targets, trial.class_names)
    require(len(records) == _NUM_ROWS, f"For {_NUM_ROWS} rows there are {len(records)} records.")
    require(len({tuple(record) for record in records}) == 1, "Records have different columns.")
    json.dumps(records, allow_nan=False)


def confidence_is_between_zero_and_one_or_refused(trial: TaskTrial) -> None:
    """Of shape [R], or an `InputError` if the task has no confidence."""
    try:
        confidence = trial.task.confidence(trial.outputs)
    except InputError:
        return
    shape = tuple(confidence.shape)
    require(shape == (_NUM_ROWS,), f"For {_NUM_ROWS} rows it has the shape {shape}, expected ({_NUM_ROWS},).")
    inside = bool(((confidence >= 0) & (confidence <= 1)).all())
    require(inside, f"It goes from {float(confidence.min()):.3g} to {float(confidence.max()):.3g}.")


def equal_outputs_give_equal_bits(trial: TaskTrial) -> None:
    """Inputs are not changed, and no global generator is used."""
    outputs, targets = trial.outputs.clone(), trial.targets.clone()
    with no_global_draws():
        first, again = (trial.task.sums(trial.outputs, trial.targets) for _ in range(2))
        losses = [trial.task.losses(trial.outputs, trial.targets) for _ in range(2)]
    require(first == again and same_bits(*losses), "The second time the sums or the losses are others.")
    unchanged = same_bits(trial.outputs, outputs) and same_bits(trial.targets, targets)
    require(unchanged, "It changes outputs or targets in place.")


def candidates_are_columns_that_there_are(trial: TaskTrial) -> None:
    """For tables with any columns."""
    tables: tuple[dict[str, str | None], ...] = (
        {"label": "classes", "text": "text"}, {"target": "float"}, {"image": None}, {},
    )  # fmt: skip
    for table in tables:
        strange = [name for name in trial.task.candidates(table) if name not in table]
        require(not strange, f"Of the columns {sorted(table)} it names {strange}.")


def there_is_a_kind_of_model_for_it(trial: TaskTrial) -> None:
    """For images, texts or recordings; None for an unknown modality."""
    loaders = [trial.task.loader(modality) for modality in ("image", "text", "audio", "words")]
    require(any(loader is not None for loader in loaders), "`loader` gives None for images, texts and recordings.")
    require(trial.task.loader("no such modality") is None, "`loader` gives a model for a modality that does not exist.")


CHECKS: tuple[Callable[[TaskTrial], None], ...] = (
    it_reads_a_column_of_a_kind_that_data_sets_have,
    what_is_wrong_with_a_column_is_told_and_not_raised,
    candidates_are_columns_that_there_are,
    there_is_a_kind_of_model_for_it,
    what_is_left_to_the_data_is_settled_by_sums_over_clients,
    the_number_of_outputs_is_at_least_one,
    losses_are_one_finite_number_a_row,
    the_loss_of_a_row_depends_on_that_row_alone,
    a_step_against_the_gradient_lowers_the_loss,
    weights_are_one_number_a_row_that_depends_on_that_row_alone,
    sums_of_batches_add_up_to_those_of_the_whole_set,
    measures_are_those_that_it_announces,
    details_hold_the_measures_of_an_evaluation,
    divergences_are_zero_from_itself_and_positive_from_another,
    there_is_an_answer_for_each_row,
    confidence_is_between_zero_and_one_or_refused,
    equal_outputs_give_equal_bits,
)
