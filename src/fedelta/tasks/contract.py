"""Checks the losses of a task in each step, so that errors name a plug-in."""

from __future__ import annotations

from torch import Tensor

from fedelta.errors import PluginError
from fedelta.plugins import called
from fedelta.tasks.base import Task


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
