"""Clipping: the norm of what one unit contributes is limited before noise is added."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from fedelta.params import Params, ParamSpec, norm, select

# Rounding errors of a norm in float64 are smaller, also for billions of elements; so no clipped norm exceeds its limit.
_MARGIN = 1 - 1e-12


def clipped(tensors: Mapping[str, Tensor], limit: float) -> Params:
    """`tensors` in float64, scaled so that their Euclidean norm, over all of them together, is at most `limit`.

    They are not changed if their norm is at most `limit` already, and zero if it is not finite.
    """
    length, limit = norm(tensors), limit * _MARGIN
    if length <= limit:
        return {name: tensor.double() for name, tensor in tensors.items()}
    if not math.isfinite(length):
        return {name: tensor.double().new_zeros(tensor.shape) for name, tensor in tensors.items()}
    return {name: tensor.double() * (limit / length) for name, tensor in tensors.items()}


def clipped_by_group(tensors: Mapping[str, Tensor], spec: ParamSpec, limit: float) -> Params:
    """`tensors` in float64, those of each group of `spec` scaled so that their norm is at most `limit`."""
    groups: dict[str, list[str]] = {}
    for name in tensors:
        groups.setdefault(spec.tensors[name].group, []).append(name)
    parts = [clipped(select(tensors, names), limit) for names in groups.values()]
    return {name: tensor for part in parts for name, tensor in part.items()}
