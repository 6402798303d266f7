"""LoRA that was made with an earlier version of transformers, whose layers had other names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedelta.inference.adapter import Adapter, check_fits
from fedelta.inference.layout import is_pair, lora_of, pair_paths
from fedelta.models.hub import Backbone
from fedelta.models.renaming import translation
from fedelta.params import Params
from fedelta.tuning.lora import Lora


def placed(adapter: Adapter, backbone: Backbone) -> Adapter:
    """The adapter with the names that the layers of `backbone` have.

    Args:
        adapter: any.
        backbone: before any tuning method is applied; it stays as it is.

    Raises:
        AdapterError: its tensors have no place in `backbone`.
    """
    adapter = translated(adapter, backbone)
    check_fits(adapter, backbone)
    return adapter


def translated(adapter: Adapter, backbone: Backbone) -> Adapter:
    """The same adapter with the names that the layers of `backbone` have; what is not found keeps its own.

    The pair of a layer that is several layers now is cut like its weight: each gets A, and its rows of B.

    Args:
        adapter: any; only LoRA is translated.
        backbone: before any tuning method is applied.
    """
    modules = dict(backbone.module.named_modules())
    paths = {name.rpartition(".")[0] for name in adapter.params}
    if not isinstance(adapter.tuning, Lora) or paths <= modules.keys():
        return adapter
    translate = translation(backbone.module)
    now = {path: (path,) if path in modules else translate(path) or (path,) for path in paths}
    params: Params = {}
    for name, tensor in adapter.params.items():
        path, _, last = name.rpartition(".")
        new = now[path]
        # A is what all parts of a layer read through; the head has one layer for each that it had.
        parts: Sequence[torch.Tensor] = [tensor] * len(new) if last != "lora_B" else tensor.chunk(len(new))
        params |= {f"{each}.{last}": part for each, part in zip(new, parts, strict=True)}
    alphas = {
        each: adapter.tuning.alpha_of(path, backbone.anatomy)
        for path in pair_paths(adapter.params)
        for each in now[path]
    }
    has_head = any(not is_pair(name) for name in params)
    return replace(adapter, params=params, tuning=lora_of(params, alphas, adapter.tuning.use_rslora, has_head))
