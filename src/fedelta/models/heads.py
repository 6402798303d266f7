"""Matches the head of a checkpoint with the classes of the data: reorders its rows, or initialises a new head."""

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
class HeadClasses:
    """The classes of a checkpoint's head and those of the data.

    Args:
        checkpoint: class names in the checkpoint's configuration, in label order.
        data: class names of the data, in label order.
        is_logged: whether changes to the head are logged as warnings.
    """

    checkpoint: tuple[str, ...]
    data: tuple[str, ...]
    is_logged: bool = True


def class_names_of(config: PretrainedConfig) -> tuple[str, ...]:
    """The class names of a configuration, in label order."""
    names = {int(label): str(name) for label, name in (config.id2label or {}).items()}
    return tuple(names[label] for label in sorted(names))


def class_axes(module: nn.Module) -> dict[str, int]:
    """The tensors of a transformers network that have one row per class, and the axis of these rows.

    Found by comparing the shapes of two such networks with 3 and 5 classes, built without memory; so heads may have any
    structure.

    Raises:
        ModelError: `module` is not a transformers network.
    """
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        raise ModelError(
            f"cannot match the head of {type(module).__name__} with the classes: it is not a transformers network.",
            hint="give the classes in the order of the head's outputs.",
        )
    few, many = (_shapes(module, number) for number in (3, 5))
    differing = {name: list(zip(shape, many[name], strict=True)) for name, shape in few.items() if shape != many[name]}
    return {name: pairs.index((3, 5)) for name, pairs in differing.items() if (3, 5) in pairs}


def _shapes(module: PreTrainedModel, num_classes: int) -> dict[str, tuple[int, ...]]:
    config = copy.deepcopy(module.config)
    config.num_labels = num_classes
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in type(module)(config).named_parameters()}


def match_head(module: PreTrainedModel, head: HeadClasses, axes: Mapping[str, int]) -> str | None:
    """Puts the rows of a checkpoint's head into the order of the data's classes, or initialises a new head.

    Args:
        module: with all tensors of the checkpoint's head; edited, and changes are logged.
        head: the classes of checkpoint and data.
        axes: of the tensors with one row per class (`class_axes`).

    Returns:
        Why the head was initialised anew, from the global generator; None if it is the checkpoint's.
    """
    if not any(module.get_parameter(name).any() for name in axes):
        return None  # an untrained head of zeros has the same rows for all classes
    old, new = head.checkpoint, head.data
    if are_numbers(old) and len(old) != len(new):
        old = tuple(f"LABEL_{label}" for label in range(len(new)))  # the configuration does not give the number
    log = logger.warning if head.is_logged else logger.debug
    order = order_of(old, new)
    if order == tuple(range(len(new))):
        return None
    if order is not None:
        log(
            "the checkpoint's head has the classes in another order (%s); its rows are reordered to match the data "
            "(%s).",
            listed(old),
            listed(new),
        )
        _permute(module, axes, order)
        return None
    if are_numbers(old) or (are_numbers(new) and len(old) == len(new)):
        order = order_by_number(old, new)
        log(
            "the checkpoint's head is kept: its classes (%s) are assumed to be those of the data (%s) in this order, "
            "since numbers cannot be matched by name. If that is wrong, correct `id2label` in its `config.json`.",
            listed([old[label] for label in order]),
            listed(new),
        )
        _permute(module, axes, order)
        return None
    redraw(module, axes)
    return discard_head(head)


def discard_head(head: HeadClasses) -> str:
    """Logs that the checkpoint's head is not used, and returns the reason."""
    old, new = head.checkpoint, head.data
    if are_numbers(old):
        # The default names of a head that was not trained for this task: every fine-tuning replaces it.
        reason = f"the checkpoint's head has {len(old)} classes, the data have {len(new)}"
        logger.debug("%s: a new head is initialised.", reason)
        return reason
    reason = f"the checkpoint's head has other classes ({listed(old)}) than the data ({listed(new)})"
    log = logger.warning if head.is_logged else logger.debug
    advice = " If they are the same, correct `id2label` in the checkpoint's `config.json`."
    log("%s: a new head is initialised.%s", reason, advice if len(old) == len(new) else "")
    return reason


@torch.no_grad()
def _permute(module: nn.Module, axes: Mapping[str, int], order: Sequence[int]) -> None:
    for name, axis in axes.items():
        tensor = module.get_parameter(name)
        tensor.copy_(tensor.index_select(axis, torch.tensor(order, device=tensor.device)))


@torch.no_grad()
def redraw(module: PreTrainedModel, names: Iterable[str]) -> None:
    """Initialises the layers of these tensors again, as the family does, from the global generator."""
    for path in dict.fromkeys(name.rpartition(".")[0] for name in names):
        layer = module.get_submodule(path)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.reset_parameters()  # a family may rely on PyTorch's initialisation
        for parameter in layer.parameters(recurse=False):
            # The initialisation of transformers skips tensors with this mark, which were loaded from a checkpoint.
            parameter._is_hf_initialized = False  # type: ignore[attr-defined]  # absent from the type stubs
        module._init_weights(layer)
