"""Translates layer paths of earlier versions of transformers to current ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Earlier path of a layer to the current paths of its parts; empty if unknown.
Translate = Callable[[str], tuple[str, ...]]


def translation(module: nn.Module) -> Translate:
    """A function from earlier layer paths to the current paths in `module`.

    A layer that was split, such as one for queries, keys and values, gives the paths of all its parts; the rows of its
    weight belong to them in equal shares, in this order. A layer that was merged from several gives no path.

    Source: the tables in `transformers.conversion_mapping` with which `from_pretrained` loads older checkpoints.
    """
    from transformers import PreTrainedModel

    return _of_tables(module) if isinstance(module, PreTrainedModel) else lambda _: ()


def _of_tables(module: PreTrainedModel) -> Translate:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming, rename_source_key

    tables = get_model_conversion_mapping(module)
    renamings = [rule for rule in tables if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in tables if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    tensors = module.state_dict()

    def translate(path: str) -> tuple[str, ...]:
        name, pattern = rename_source_key(f"{path}.weight", renamings, converters, module.base_model_prefix, tensors)
        names = [name]
        if pattern is not None:
            converter = by_pattern[pattern]
            if not (len(converter.operations) == 1 and _cuts_rows(converter.operations[0], Chunk)):
                return ()
            first = converter.target_patterns[0]
            names = [name.replace(first, target) for target in converter.target_patterns]
        return tuple(name.removesuffix(".weight") for name in names) if tensors.keys() >= set(names) else ()

    return translate


def _cuts_rows(operation: object, chunk: type) -> bool:
    return isinstance(operation, chunk) and vars(operation)["dim"] == 0
