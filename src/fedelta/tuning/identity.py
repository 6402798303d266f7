"""Which base model it is: digests of all that a run uses of it and does not tune.

By them a run, or an adapter, notices that there are other weights, or another tokenizer, at the place where its base
model was. 86 million parameters take a quarter of a second.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from fedelta.models.hub import Backbone
from fedelta.models.source import ModelSource, directory_of
from fedelta.params import digest_of
from fedelta.tuning.base import untouched

WEIGHTS = "base weights"
_FILE = "model file "
_VOLATILE = ("transformers_version", "_name_or_path")  # say who wrote a file, not what it means
_PREPARATION = ("config.json", "*processor_config.json", "token*.json", "special_tokens_map.json", "added_tokens.json")
_VOCABULARY = ("vocab*", "merges.txt", "*.model")


def identity(backbone: Backbone, tuned: Collection[str], source: ModelSource | None) -> dict[str, str]:
    """What is used of the base model to its digest: the frozen tensors together, and each file that goes with them.

    Args:
        backbone: with the tuning method applied, before anything is trained or cast.
        tuned: names of the tensors that are tuned.
        source: where it is from; None for a backbone of the caller's own.
    """
    found = {WEIGHTS: digest_of(dict(_frozen(backbone, tuned)))}
    directory = None if source is None else directory_of(source)
    if directory is not None:
        patterns = (*_PREPARATION, *_VOCABULARY)
        paths = sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()})
        found |= {f"{_FILE}{path.name}": _digest_of_file(path) for path in paths}
    return found


def unlike(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is not as it was, in words. A file that has come since is nobody's concern: others may have fetched it."""
    return [key for key, digest in then.items() if now.get(key) != digest]


def _frozen(backbone: Backbone, tuned: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Name in the untouched model and tensor, of what no method tunes."""
    kept = backbone.module.state_dict().keys() - set(tuned)  # without buffers that no file holds
    # Tied weights have several names, of which one is tuned.
    own_tensors = {id(tensor) for name, tensor in backbone.module.named_parameters() if name in tuned}
    for own, (now, module) in untouched(backbone.module).items():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if f"{now}.{name}".lstrip(".") in kept and id(tensor) not in own_tensors:
                yield f"{own}.{name}", tensor


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
