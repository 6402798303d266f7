"""Predictions of a model that was given as an object: its backbone, and batches of ready inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedelta.data.given import TableInputs
from fedelta.data.objects import stacked
from fedelta.errors import DataError
from fedelta.inference.adapter import SavedAdapter
from fedelta.inference.directory import CONFIG, read_object
from fedelta.inference.layout import is_pair
from fedelta.models.hub import Backbone
from fedelta.models.objects import (
    Processor,
    is_transformers,
    names_for,
    of_module,
    of_transformers,
    takes_only_tensors,
)
from fedelta.tasks.classification import Classification

Transform = Callable[[Any], Tensor | Mapping[str, Tensor] | Sequence[Tensor]]
"""Makes the inputs of one example (Any), without a batch axis."""


def base_of(
    directory: Path, adapter: SavedAdapter, module: nn.Module, processor: Processor | None, *, reads_examples: bool
) -> Backbone:
    """The backbone of the base model of an adapter.

    Args:
        directory: of the adapter.
        adapter: what it holds.
        module: the base model; copied.
        processor: of a model of transformers.
        reads_examples: whether its processor makes inputs of examples, if it has one.
    """
    policy = "average" if adapter.model is None else adapter.model.batch_norm
    if is_transformers(module):
        reads = reads_examples and (processor is not None or bool(module.name_or_path))
        task = adapter.task or Classification()
        return of_transformers(module, task, processor=processor, reads_examples=reads, batch_norm=policy)
    if adapter.head is not None:
        return of_module(module, head=adapter.head, batch_norm=policy)
    config, head = read_object(directory / CONFIG), None
    if "modules_to_save" in config:  # of LoRA: what was tuned besides the pairs, or nothing
        named = config["modules_to_save"]
        head = tuple(map(str, named)) if isinstance(named, list) else ()
    if adapter.tuning.name == "head":
        head = tuple(dict.fromkeys(name.rpartition(".")[0] for name in adapter.params if not is_pair(name)))
    return of_module(module, head=head, batch_norm=policy)


def ready_batches(
    backbone: Backbone, examples: Sequence[Any], transform: Transform | None, size: int
) -> Iterator[dict[str, Tensor]]:
    """Inputs of `backbone` in batches of `size` examples, in order.

    Raises:
        InputError: an example makes no inputs, or inputs that the model does not take.
    """
    if not len(examples):
        return iter(())
    rows = [_made(example, transform) for example in examples]
    table = stacked(rows, "the examples", hint=_hint(backbone.module))
    names = names_for(backbone.module, table.names, is_positional=table.is_positional)
    inputs = TableInputs(table, dict(zip(names, table.names, strict=True)))
    if takes_only_tensors(backbone.module, inputs.fetch(torch.arange(1))):
        inputs = TableInputs(table, {"0": table.names[0]})
    return (inputs.fetch(chunk) for chunk in torch.arange(len(rows)).split(size))


def _hint(module: nn.Module) -> str:
    if is_transformers(module):
        return (
            "give the tokenizer or image processor, `processor=`, or `transform=`, which makes tensors of one example."
        )
    return "`transform=` makes tensors of one example."


def _made(example: Any, transform: Transform | None) -> Any:
    """The inputs of one example."""
    if transform is None:
        return example
    try:
        return transform(example)
    # The function is the caller's, and may raise any class of error.
    except Exception as error:
        raise DataError(f"`transform` fails on {_shown(example)}: {type(error).__name__}: {error}") from error


def _shown(example: object) -> str:
    return repr(example)[:80] if isinstance(example, str | int | float | Path) else f"a {type(example).__name__}"
