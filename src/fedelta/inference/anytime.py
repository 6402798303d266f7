"""Answers at exits: at a given one, at each in turn, or at the first that is confident enough (`Task.confidence`).

Nothing above the exit that answers is computed.

Shapes: B samples, X outputs per sample.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fedelta.errors import InputError, ModelError
from fedelta.models.hub import Backbone
from fedelta.tasks.base import Task
from fedelta.tuning.exits import ExitBlock, exit_blocks, logits_at, walk


def exits_of(backbone: Backbone) -> list[ExitBlock]:
    """The exits of a model, lowest first.

    Raises:
        ModelError: there are none.
    """
    blocks = exit_blocks(backbone.module)
    if not blocks:
        raise ModelError(
            f"{type(backbone.module).__name__} has no exits: it answers only after its last layer.",
            hint="ask without exit, budget or confidence; or tune the model with `accumulator` or `exit-heads`.",
        )
    return blocks


def check_exit(backbone: Backbone, number: int) -> None:
    """Checks that the model has an exit `number`.

    Raises:
        ModelError: the model has no exits.
        InputError: there is no such exit.
    """
    last = len(exits_of(backbone))
    if not 1 <= number <= last:
        raise InputError(
            f"there is no exit {number}: the model has {last}, one after each block.", hint=f"use 1 to {last}."
        )


def check_confidence(confidence: float) -> None:
    """Checks that `confidence` is a probability above 0.

    Raises:
        InputError: it is not.
    """
    if not 0 < confidence <= 1:
        raise InputError(
            f"the confidence is {confidence}, expected a probability above 0 and at most 1.", hint="for example 0.9."
        )


def at_exit(backbone: Backbone, inputs: dict[str, Tensor], number: int) -> Tensor:
    """Outputs [B, X] of the exit `number`, which the model must have."""
    return logits_at(exit_blocks(backbone.module), lambda: backbone.logits(inputs), [number])[number]


def at_each_exit(backbone: Backbone, inputs: dict[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yields number and outputs [B, X] of each exit in turn; a block runs when its answer is requested."""
    for number, block in enumerate(walk(exit_blocks(backbone.module), lambda: backbone.logits(inputs)), start=1):
        yield number, block.answer()


def at_first_sure_exit(
    backbone: Backbone, inputs: dict[str, Tensor], confidence: float, task: Task
) -> tuple[int, Tensor]:
    """Number and outputs [1, X] of the first exit whose confidence is at least `confidence`, else of the last.

    Args:
        backbone: has exits.
        inputs: of one example.
        confidence: above 0, at most 1.
        task: computes the confidence of outputs.

    Raises:
        InputError: this task has no confidence.
    """
    for number, outputs in at_each_exit(backbone, inputs):  # noqa: B007 read behind the loop
        if task.confidence(outputs).max() >= confidence:
            break
    return number, outputs
