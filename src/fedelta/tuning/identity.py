"""Digests of the base model: of everything that a run uses of it but does not tune.

With them a run or an adapter detects that other weights or another tokenizer have taken the place of its base model.
86 million parameters take a quarter of a second.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from fedelta.models.hub import Backbone
from fedelta.models.layers import is_quantised
from fedelta.models.quantised import plain_weight
from fedelta.models.source import ModelSource, directory_of
from fedelta.params import digest_of
from fedelta.tuning.base import untouched

WEIGHTS = "base weights"
_FILE = "model file "
_VOLATILE = ("transformers_version", "_name_or_path")  # depend on who wrote a file, not on the model
_PREPARATION = ("config.json", "*processor_config.json", "token*.json", "special_tokens_map.json", "added_tokens.json")
_VOCABULARY = ("vocab*", "merges.txt", "*.model")


def identity(backbone: Backbone, tuned: Collection[str], source: ModelSource | None) -> dict[str, str]:
    """Part of the base model to its digest: all frozen tensors together, and each configuration and tokenizer file.

    Args:
        backbone: the model with the tuning method applied, before it is trained or cast.
        tuned: names of the tuned tensors.
        source: where the model was loaded from; None if the caller has made it.
    """
    digests = {WEIGHTS: digest_of(dict(_frozen(backbone, tuned)))}
    directory = None if source is None else directory_of(source)
    if directory is not None:
        patterns = (*_PREPARATION, *_VOCABULARY)
        paths = sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()})
        digests |= {f"{_FILE}{path.name}": _digest_of_file(path) for path in paths}
    return digests


def unlike(recorded: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """The parts whose digest is not the recorded one. New files are ignored: another program may have fetched them."""
    return [part for part, digest in recorded.items() if current.get(part) != digest]


def _frozen(backbone: Backbone, tuned: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that no method tunes, with their names in the untouched model."""
    frozen_names = backbone.module.state_dict().keys() - set(tuned)  # without buffers that are not saved
    # Tied weights have several names, of which only one is tuned.
    tuned_ids = {id(tensor) for name, tensor in backbone.module.named_parameters() if name in tuned}
    for path, (current, module) in untouched(backbone.module).items():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if f"{current}.{name}".lstrip(".") in frozen_names and id(tensor) not in tuned_ids:
                # What a quantised weight stands for, whatever its library stores.
                yield f"{path}.{name}", plain_weight(module) if is_quantised(module) and name == "weight" else tensor


def _digest_of_file(path: Path) -> str:
    content = path.read_bytes()
    if path.name == "config.json":
        try:
            table = json.loads(content)
        except ValueError:
            table = None
        if isinstance(table, dict):
            content = json.dumps({k: v for k, v in table.items() if k not in _VOLATILE}, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()
