"""Translates LoRA adapters from earlier versions of transformers, in which layers had other names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedelta.inference.adapter import SavedAdapter, check_fits
from fedelta.inference.layout import is_pair, lora_of, pair_paths
from fedelta.models.hub import Backbone
from fedelta.models.renaming import translation
from fedelta.params import Params
from fedelta.tuning.lora import Lora


def placed(adapter: SavedAdapter, backbone: Backbone) -> SavedAdapter:
    """The adapter with the layer names of `backbone`, checked to fit.

    Args:
        adapter: of any kind.
        backbone: before any tuning method is applied; not modified.

    Raises:
        AdapterError: the adapter does not fit `backbone`.
    """
    adapter = translated(adapter, backbone)
    check_fits(adapter, backbone)
    return adapter


def translated(adapter: SavedAdapter, backbone: Backbone) -> SavedAdapter:
    """The adapter with the layer names of `backbone`; layers that are not found keep their names.

    If a layer was split since, its pair is split like its weight: each part gets A, and its rows of B.

    Args:
        adapter: of any kind; only LoRA is translated.
        backbone: before any tuning method is applied.
    """
    modules = dict(backbone.module.named_modules())
    paths = {name.rpartition(".")[0] for name in adapter.params}
    if not isinstance(adapter.tuning, Lora) or paths <= modules.keys():
        return adapter
    translate = translation(backbone.module)
    current_paths = {path: (path,) if path in modules else translate(path) or (path,) for path in paths}
    params: Params = {}
    for name, tensor in adapter.params.items():
        path, _, last = name.rpartition(".")
        current = current_paths[path]
        # All parts of a layer share A; layers of the head are never split.
        parts: Sequence[torch.Tensor] = [tensor] * len(current) if last != "lora_B" else tensor.chunk(len(current))
        params |= {f"{new_path}.{last}": part for new_path, part in zip(current, parts, strict=True)}
    alphas = {
        new_path: adapter.tuning.alpha_of(path, backbone.anatomy)
        for path in pair_paths(adapter.params)
        for new_path in current_paths[path]
    }
    has_head = any(not is_pair(name) for name in params)
    return replace(adapter, params=params, tuning=lora_of(params, alphas, adapter.tuning.use_rslora, has_head))
