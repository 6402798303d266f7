"""Backbones of models that the caller gives as objects: any `nn.Module`, or a model of transformers.

The module is copied, so that the caller's stays as it is and can be given again.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from fedelta.errors import FedeltaError, ModelError, listed
from fedelta.models.anatomy import anatomy_of, discovered
from fedelta.models.decoders import check_causal, decoder_of
from fedelta.models.heads import class_names_of
from fedelta.models.hub import Backbone, with_modality, with_vocabulary
from fedelta.models.layers import is_linear
from fedelta.models.quantised import settle_layers
from fedelta.models.sizes import native_size
from fedelta.models.source import ModelSource
from fedelta.models.usable import check_family, disable_caches
from fedelta.tasks.base import Task, reads_dialogues
from fedelta.tasks.class_names import are_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loss = Callable[[nn.Module, Any], Tensor]
"""Gives the loss of each row of a batch [B], or their mean []; the batch is as the data have it (Any): a dictionary of
tensors, or a tuple of them."""
Given = TypeVar("Given")
Copied = TypeVar("Copied", bound=nn.Module)
BatchNorm = Literal["average", "local", "group"]


class Processor(Protocol):
    """A tokenizer, an image processor or a feature extractor of transformers."""

    def save_pretrained(self, save_directory: str) -> object:
        """Writes its files."""


def called(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits of a module: called with keywords, with tensors in their order if they only have places, or with all.

    See `names_for`.
    """
    parameters, takes_any, _ = parameters_of(module)
    if all(name.isdecimal() for name in inputs):
        output = module(*inputs.values())
    elif takes_any or inputs.keys() <= set(parameters):
        output = module(**inputs)
    else:
        output = module(dict(inputs))
    return outputs_of(module, output)


@dataclass(frozen=True)
class ByLoss:
    """Calls the caller's loss function.

    Args:
        loss: of a batch.
        is_positional: whether batches are tuples.
    """

    loss: Loss
    is_positional: bool

    def __call__(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """The loss of each row, [B, 1]; of a mean, that mean in each row.

        Raises:
            ModelError: the function returns something else.
        """
        num_rows = len(next(iter(inputs.values())))
        losses: object = self.loss(module, tuple(inputs.values()) if self.is_positional else dict(inputs))
        if isinstance(losses, Tensor) and losses.shape in ((), (1,), (num_rows,)):
            return losses.expand(num_rows).unsqueeze(1)
        result = f"a tensor {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ModelError(
            f"`loss` returned {result} for {num_rows} rows, expected a tensor ({num_rows},) or its mean ().",
            hint='losses of PyTorch give one number a row with `reduction="none"`.',
        )


def outputs_of(module: nn.Module, output: object) -> Tensor:
    """The logits that a module returned: a tensor, the `logits` of a dictionary or an object, or the first of several.

    Raises:
        ModelError: there are none.
    """
    value = output
    if isinstance(output, Mapping):
        value = output.get("logits")
    elif isinstance(output, tuple | list) and output:
        value = output[0]
    elif not isinstance(output, Tensor):
        value = getattr(output, "logits", None)
    if isinstance(value, Tensor):
        return value
    raise ModelError(
        f"{type(module).__name__} returns {type(output).__name__} without logits, expected a tensor.",
        hint="return the logits, or give a loss function of your own: `loss=`.",
    )


def unwrapped(model: Given) -> Given | nn.Module:
    """The module inside of what `torch.compile` or `DataParallel` made of it; anything else as it is.

    Raises:
        ModelError: TorchScript has replaced the module.
    """
    inner: Given | nn.Module = model
    while isinstance(inner, nn.Module):
        children = dict(inner.named_children())
        if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif "_orig_mod" in children:
            inner = children["_orig_mod"]
        else:
            break
    if isinstance(inner, torch.jit.ScriptModule):
        raise ModelError(
            "`model` was compiled by TorchScript, and its layers cannot be tuned.",
            hint="give the `nn.Module` that it was made of.",
        )
    return inner


def copied(module: Copied) -> Copied:
    """A copy in float32 and evaluation mode.

    Raises:
        ModelError: the module cannot be copied, or has no weights yet.
    """
    try:
        twin = copy.deepcopy(module)
    # Whatever the caller's module holds may refuse to be copied, with any class of error.
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__} cannot be copied: {type(error).__name__}: {error}",
            hint="it must hold nothing that `copy.deepcopy` refuses, such as locks, open files or results of a forward "
            "pass; the copy keeps your module as it is.",
        ) from error
    return twin.float().eval()


def is_transformers(module: object) -> TypeGuard[PreTrainedModel]:
    """Whether `module` is a model of transformers; does not import it."""
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(module, library.PreTrainedModel)


def parameters_of(module: nn.Module) -> tuple[list[str], bool, bool]:
    """The names of the arguments of a module's `forward`, and whether it takes any others by name, and by place."""
    kinds = inspect.Parameter
    parameters = inspect.signature(module.forward).parameters.values()
    names = [item.name for item in parameters if item.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    others = {item.kind for item in parameters}
    return names, kinds.VAR_KEYWORD in others, bool(others & {kinds.VAR_POSITIONAL, kinds.POSITIONAL_ONLY})


def names_for(module: nn.Module, names: Sequence[str], *, is_positional: bool) -> tuple[str, ...]:
    """The names of a module's inputs, with which `called` calls it.

    Args:
        module: to be called.
        names: of the columns of the data, without the labels.
        is_positional: whether they are only places.

    Raises:
        ModelError: the module takes other inputs.
    """
    parameters, takes_any, takes_places = parameters_of(module)
    if is_positional and (takes_places or len(parameters) >= len(names)):
        return tuple(names) if takes_places else tuple(parameters[: len(names)])
    takes_whole = len(parameters) == 1 and not set(names) & set(parameters)
    if not is_positional and (takes_any or set(names) <= set(parameters) or takes_whole):
        return tuple(names)
    foreign = list(names) if is_positional else [name for name in names if name not in parameters]
    raise ModelError(
        f"`forward` of {type(module).__name__} takes {listed(parameters)}, but the data have {listed(foreign)}.",
        hint="name the columns of the data after the arguments of `forward`, and leave out others.",
    )


def takes_only_tensors(module: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Whether a module, whose one argument has another name than its one input, fails on a dictionary of it.

    Args:
        module: in evaluation mode.
        inputs: of a few rows.
    """
    parameters, takes_any, _ = parameters_of(module)
    if takes_any or len(inputs) > 1 or len(parameters) != 1 or inputs.keys() <= {*parameters, "0"}:
        return False
    try:
        with torch.no_grad():
            module(dict(inputs))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return True
    return False


def of_module(
    module: nn.Module,
    read: Callable[[nn.Module, dict[str, Tensor]], Tensor] = called,
    *,
    head: Sequence[str] | None = None,
    batch_norm: BatchNorm = "average",
) -> Backbone:
    """The backbone of any module, in float32.

    Args:
        module: copied.
        read: computes its outputs.
        head: paths of the parts that are newly trained; by default the last linear layer.
        batch_norm: treatment of tuned batch norms (`ModelSource`).

    Raises:
        ModelError: a part of `head` does not exist.
    """
    module = copied(module)
    paths = dict(module.named_modules())
    if missing := [path for path in head or () if path not in paths]:
        raise ModelError(
            f"{type(module).__name__} has no {listed(missing)}, found {listed(list(paths)[1:], 20) or 'none'}."
        )
    linear = [path for path, layer in paths.items() if path and is_linear(layer)]
    anatomy = discovered(module, tuple(linear[-1:] if head is None else head))
    return Backbone(module, anatomy, batch_norm=batch_norm, read=read)


def of_transformers(
    module: PreTrainedModel,
    task: Task,
    *,
    processor: Processor | None = None,
    reads_examples: bool = False,
    batch_norm: BatchNorm = "average",
) -> Backbone:
    """The backbone of a model of transformers, in float32.

    Args:
        module: copied.
        task: what is predicted.
        processor: makes inputs of examples; by default that of the checkpoint that the model was loaded from.
        reads_examples: whether examples are read, and not only ready inputs.
        batch_norm: treatment of tuned batch norms (`ModelSource`).

    Raises:
        ModelError: the model does not fit the task, or there is no processor.
    """
    module, is_decoder = copied(module), reads_dialogues(task)
    config, checkpoint = module.config, str(module.name_or_path or "")
    check_family(config.model_type)
    if is_decoder:
        check_causal(config)
    config.return_dict = True  # outputs are read by name
    disable_caches(module)
    settle_layers(module)
    anatomy = (decoder_of if is_decoder else anatomy_of)(module, config.model_type)
    backbone = Backbone(module, anatomy, batch_norm=batch_norm, checkpoint=checkpoint)
    backbone = with_vocabulary(backbone) if is_decoder else backbone
    if processor is None and not reads_examples:
        return backbone
    size = native_size(config) or 224  # as for a checkpoint
    with nullcontext() if processor is None else TemporaryDirectory() as place:
        if processor is not None and place is not None:
            config.save_pretrained(place)
            processor.save_pretrained(place)
        try:
            made = with_modality(backbone, ModelSource(source=place or checkpoint or None), config, size, task)
        except FedeltaError as error:
            if place is None:
                raise
            raise ModelError(error.message.replace(place, type(processor).__name__), hint=error.hint) from error
    _refuse_other_processor(made, processor)
    return made


def _refuse_other_processor(backbone: Backbone, processor: Processor | None) -> None:
    """Raises if a tokenizer was given for a model that reads no texts; the reverse is noticed when it is loaded."""
    kind = None if backbone.modality is None else backbone.modality.name
    is_tokenizer = callable(getattr(processor, "convert_tokens_to_ids", None))
    if is_tokenizer and kind in ("image", "audio"):
        raise ModelError(
            f"{type(backbone.module).__name__} takes {kind} inputs, but the processor is a {type(processor).__name__}.",
            hint="give its image processor or feature extractor, or none.",
        )


def names_of_classes(module: object) -> tuple[str, ...]:
    """The names that a model of transformers has for its classes; empty where it only numbers them."""
    names = class_names_of(module.config) if is_transformers(module) else ()
    return () if are_numbers(names) else names


def with_classes(backbone: Backbone, class_names: Sequence[str]) -> Backbone:
    """The backbone, after its configuration, if it is a model of transformers, was given the names of the classes."""
    if is_transformers(backbone.module) and class_names:
        config = backbone.module.config
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: number for number, name in enumerate(class_names)}
    return backbone
