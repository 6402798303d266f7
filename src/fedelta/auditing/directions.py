"""Directions in which a canary pushes: of norm 1, with the same norm in every group."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from fedelta.params import Params, ParamSpec, norm
from fedelta.seeds import stream


def random_direction(spec: ParamSpec, names: Iterable[str]) -> Params:
    """A fixed random direction over the tensors of `names`, float64."""
    signs = {
        name: torch.randint(0, 2, spec.tensors[name].shape, generator=stream(0, "canary", name)) * 2.0 - 1.0
        for name in names
    }
    return direction(signs, spec)


def direction(tensors: Params, spec: ParamSpec) -> Params:
    """The direction of `tensors`, float64, without those that are zero; groups are scaled to the same norm."""
    group_of = {name: spec.tensors[name].group for name, tensor in tensors.items() if tensor.any()}
    norms: dict[str, float] = {}
    for name, group in group_of.items():
        norms[group] = math.hypot(norms.get(group, 0.0), norm({name: tensors[name]}))
    scale = 1 / math.sqrt(max(1, len(norms)))
    return {name: tensors[name].double() * (scale / norms[group]) for name, group in group_of.items()}


def part(tensors: Params, along: Params) -> float:
    """The inner product of `tensors` with a direction."""
    return math.fsum(float((tensors[name].double() * axis).sum()) for name, axis in along.items())
