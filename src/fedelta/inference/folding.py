"""Puts what a run carries beside its pairs (aggregation/carrying.py) into the pairs, so that an adapter has pairs only.

    s [B, D] [A; C] = s (B A + D C)

The pair of a layer gets the rank of both together, less what is zero, and an alpha with which its factor stays s. If it
exceeds the largest rank that the layer can have, the product is factored again by an SVD, without loss but for
rounding. Stock PEFT loads the result as any LoRA, with `rank_pattern` and `alpha_pattern`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedelta.aggregation.low_rank import CARRIED, FACTORS, paths_of
from fedelta.inference.layout import lora_of
from fedelta.models.anatomy import Anatomy
from fedelta.params import Params
from fedelta.tuning.base import TuningMethod
from fedelta.tuning.lora import Lora


def folded(tuning: TuningMethod, params: Params, anatomy: Anatomy) -> tuple[TuningMethod, Params]:
    """LoRA settings and tensors without carried factors; both as they are if there are none."""
    tensors, growth = folded_pairs(params)
    if not growth or not isinstance(tuning, Lora):
        return tuning, params
    powers = {path: math.sqrt(factor) if tuning.use_rslora else factor for path, factor in growth.items()}
    alphas = {path: tuning.alpha_of(path, anatomy) * power for path, power in powers.items()}
    has_head = len(tensors) > len(FACTORS) * len(growth)
    return lora_of(tensors, alphas, tuning.use_rslora, has_head), tensors


def folded_pairs(params: Params) -> tuple[Params, dict[str, float]]:
    """The tensors without carried factors, and by how much the rank of each layer has grown."""
    paths = [path for path in paths_of(params) if f"{path}.{CARRIED[0]}" in params]
    growth: dict[str, float] = {}
    pairs: Params = {}
    for path in paths:
        names = [f"{path}.{factor}" for factor in (*FACTORS, *CARRIED)]
        pair = _one(*(params[name] for name in names))
        growth[path] = pair[0].shape[0] / params[names[0]].shape[0]
        pairs |= dict(zip(names[:2], pair, strict=True))
    kept = (name for name in params if name.rpartition(".")[2] not in CARRIED)
    return {name: pairs.get(name, params[name]) for name in kept}, growth


def _one(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The pair with the product B A + D C."""
    below, beside = torch.cat([a, c]), torch.cat([b, d], dim=1)
    used = (below.flatten(1) != 0).any(1) & (beside.flatten(1) != 0).any(0)
    used[: len(a)] = True
    below, beside = below[used], beside[:, used]
    most = min(beside.shape[0], math.prod(below.shape[1:]))
    if len(below) <= most:
        return below, beside
    product = beside.double().flatten(1) @ below.double().flatten(1)
    u, s, v = torch.linalg.svd(product, full_matrices=False)
    shape_a, shape_b = (most, *below.shape[1:]), (beside.shape[0], most, *beside.shape[2:])
    return v.reshape(shape_a).float(), (u * s).reshape(shape_b).float()
