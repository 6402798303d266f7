"""A checkpoint's own head and the classes of the data: matched by name, put into their order, or drawn anew."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedelta.errors import ModelError, listed
from fedelta.tasks.class_names import are_numbers, order_by_number, order_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger("fedelta")


@dataclass(frozen=True)
class Head:
    """What the rows of a head stand for.

    Args:
        theirs: class names in the checkpoint's configuration, in label order.
        ours: of the data, in label order.
        is_told: whether what is done to the head is logged.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    is_told: bool = True


def class_names_of(config: PretrainedConfig) -> tuple[str, ...]:
    """The class names of a configuration, in label order."""
    names = {int(label): str(name) for label, name in (config.id2label or {}).items()}
    return tuple(names[label] for label in sorted(names))


def class_axes(module: nn.Module) -> dict[str, int]:
    """Tensors of a network of transformers that have a row for each class, and the axis of these rows.

    Found by what differs between two such networks without memory that have 3 and 5 classes, so that a head may look as
    it likes.

    Raises:
        ModelError: it is no network of transformers, and nobody knows what its head looks like.
    """
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        raise ModelError(
            f"which rows of the head of {type(module).__name__} stand for which class is not known: it is no network "
            "of transformers.",
            hint="give the classes in the order in which the head has them.",
        )
    few, many = (_shapes(module, number) for number in (3, 5))
    differing = {name: list(zip(shape, many[name], strict=True)) for name, shape in few.items() if shape != many[name]}
    return {name: pairs.index((3, 5)) for name, pairs in differing.items() if (3, 5) in pairs}


def _shapes(module: PreTrainedModel, num_classes: int) -> dict[str, tuple[int, ...]]:
    config = copy.deepcopy(module.config)
    config.num_labels = num_classes
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in type(module)(config).named_parameters()}


def match_head(module: PreTrainedModel, head: Head, axes: Mapping[str, int]) -> str | None:
    """Brings the head of a checkpoint into the order of our classes; edits `module`, and says what was done.

    Args:
        module: with all tensors of the checkpoint's head.
        head: what its rows stand for.
        axes: of the tensors with a row for each class (`class_axes`).

    Returns:
        Why the head had to be drawn anew, from the global generator; None where it is the checkpoint's.
    """
    if not any(module.get_parameter(name).any() for name in axes):
        return None  # zeros, as a head begins that is yet to be tuned, tell no class from another
    theirs, ours = head.theirs, head.ours
    if are_numbers(theirs) and len(theirs) != len(ours):
        theirs = tuple(f"LABEL_{label}" for label in range(len(ours)))  # its configuration does not say how many
    tell = logger.warning if head.is_told else logger.debug
    order = order_of(theirs, ours)
    if order == tuple(range(len(ours))):
        return None
    if order is not None:
        tell(
            "the checkpoint's head has the classes in another order (%s); its rows are put into that of the data (%s).",
            listed(theirs),
            listed(ours),
        )
        _permute(module, axes, order)
        return None
    if are_numbers(theirs) or (are_numbers(ours) and len(theirs) == len(ours)):
        order = order_by_number(theirs, ours)
        tell(
            "the checkpoint's head is kept, its classes (%s) taken for those of the data (%s) in this order: names "
            "cannot tell. If that is wrong, mend `id2label` in its `config.json`.",
            listed([theirs[label] for label in order]),
            listed(ours),
        )
        _permute(module, axes, order)
        return None
    redraw(module, axes)
    return lose_head(head)


def lose_head(head: Head) -> str:
    """Says that the checkpoint's head is not used, and returns why."""
    theirs, ours = head.theirs, head.ours
    reason = f"the checkpoint's head knows other classes ({listed(theirs)}) than the data have ({listed(ours)})"
    tell = logger.warning if head.is_told else logger.debug
    advice = " If they are the same, mend `id2label` in the checkpoint's `config.json`."
    tell("%s: a new one is drawn.%s", reason, advice if len(theirs) == len(ours) else "")
    return reason


@torch.no_grad()
def _permute(module: nn.Module, axes: Mapping[str, int], order: Sequence[int]) -> None:
    for name, axis in axes.items():
        tensor = module.get_parameter(name)
        tensor.copy_(tensor.index_select(axis, torch.tensor(order, device=tensor.device)))


@torch.no_grad()
def redraw(module: PreTrainedModel, names: Iterable[str]) -> None:
    """Draws the layers of these tensors anew, as the family initialises them, from the global generator."""
    for path in dict.fromkeys(name.rpartition(".")[0] for name in names):
        layer = module.get_submodule(path)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.reset_parameters()  # a family may leave a layer as PyTorch makes it
        for parameter in layer.parameters(recurse=False):
            # transformers' own initialisation passes over what a checkpoint has filled.
            parameter._is_hf_initialized = False  # type: ignore[attr-defined]  # its mark, which no stub knows
        module._init_weights(layer)
