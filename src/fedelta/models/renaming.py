"""Where the layers of earlier versions of transformers are now, by the tables with which it loads their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Path of a layer of old to those of the layers that it is now, none where that is not known.
Translate = Callable[[str], tuple[str, ...]]


def translation(module: nn.Module) -> Translate:
    """How to find the layers of `module` by their earlier paths.

    A layer that is several layers now, such as the one for queries, keys and values, gives the paths of all; the rows
    of its weight are theirs in equal parts, in this order. A layer that was put together of several gives none.

    Source: `transformers.conversion_mapping`, read as `from_pretrained` reads it.
    """
    from transformers import PreTrainedModel

    return _of_tables(module) if isinstance(module, PreTrainedModel) else lambda _: ()


def _of_tables(module: PreTrainedModel) -> Translate:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming, rename_source_key

    tables = get_model_conversion_mapping(module)
    renamings = [each for each in tables if isinstance(each, WeightRenaming)]
    converters = [each for each in tables if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
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
        return tuple(each.removesuffix(".weight") for each in names) if all(each in tensors for each in names) else ()

    return translate


def _cuts_rows(operation: object, chunk: type) -> bool:
    return isinstance(operation, chunk) and vars(operation)["dim"] == 0
