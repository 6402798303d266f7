"""Payloads of low-rank pairs: clients of a lower rank get fewer rows, and of what is carried only what is in use.

A `Form` says how many rows. It gives the specification of such a payload, whose fingerprint tells a client which form
its download has: a client sends its pairs in the form in which they came. Within server and client all tensors have the
full shapes of the model, with zeros for what did not travel: a row of A and a column of B that are both zero have no
gradient, so that a client of rank r computes exactly with a pair of rank r.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fedelta.aggregation.carrying import is_dense, rows_in_use
from fedelta.aggregation.low_rank import CARRIED, FACTORS, as_matrix, paths_of
from fedelta.codecs.wire import fingerprint_in
from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.strategies.base import ALL_ROWS, Form


@dataclass(frozen=True)
class Forms:
    """The forms of the payloads of a run.

    Args:
        wire: every tensor that can travel, with the full shapes.
    """

    wire: ParamSpec

    @cached_property
    def _specs(self) -> dict[Form, ParamSpec]:
        return {}

    @cached_property
    def _by_fingerprint(self) -> dict[bytes, Form]:
        return {}

    def spec_of(self, form: Form) -> ParamSpec:
        """The specification of a payload: other shapes, and without factors that are known or not in use."""
        if form not in self._specs:
            sizes = {name: self._size(form, name) for name in self.wire}
            tensors = {
                name: tensor if sizes[name] is None else _resized(name, tensor, sizes[name])
                for name, tensor in self.wire.tensors.items()
                if sizes[name] != 0
            }
            is_whole = tensors == self.wire.tensors
            self._specs[form] = self.wire if is_whole else ParamSpec(tensors)
        return self._specs[form]

    def form_in(self, payload: bytes) -> Form:
        """The form that a download has, by its fingerprint; the usual one if it is none of this run."""
        if (fingerprint := fingerprint_in(payload)) is None:
            return Form()
        if fingerprint not in self._by_fingerprint:
            known = (form for form in self._candidates() if self.spec_of(form).fingerprint == fingerprint)
            self._by_fingerprint[fingerprint] = next(known, Form())
        return self._by_fingerprint[fingerprint]

    def form_of(self, params: Mapping[str, Tensor], rank: int | None) -> Form:
        """The form of a download of server params to a client of `rank` (None: that of the server)."""
        rank = ALL_ROWS if rank is None else rank
        if not self.wire.received:
            return Form(rank)
        pairs = [[as_matrix(params[f"{path}.{factor}"]) for factor in CARRIED] for path in paths_of(self.wire)]
        if all(is_dense(*pair) for pair in pairs):
            return Form(rank, "dense")
        return Form(rank, max(rows_in_use(*pair) for pair in pairs))

    def narrowed(self, tensors: Params, form: Form) -> Params:
        """What travels of `tensors`, as views."""
        spec = self.spec_of(form)
        if spec is self.wire:
            return tensors
        return {name: _cut(name, tensor, spec.tensors[name].shape) for name, tensor in tensors.items() if name in spec}

    def widened(self, tensors: Params, form: Form) -> Params:
        """The inverse of `narrowed`, in the order of `wire`: zeros, or the identity, for what did not travel."""
        if self.spec_of(form) is self.wire:
            return tensors
        wide = {name: _filled(name, tensor, self.wire.tensors[name].shape) for name, tensor in tensors.items()}
        paths = {name.rpartition(".")[0] for name in tensors}
        for name in self.wire.received:
            if name not in wide and name.rpartition(".")[0] in paths:
                shape = self.wire.tensors[name].shape
                wide[name] = torch.eye(shape[0]).reshape(shape) if form.rows == "dense" else torch.zeros(shape)
        return {name: wide[name] for name in self.wire if name in wide}

    def limited(self, tensors: Params, form: Form) -> Params:
        """`tensors`, in which the rows and columns of factors are zero that a client of this rank has not."""
        return self.widened(self.narrowed(tensors, form), form)

    def _candidates(self) -> Iterator[Form]:
        """All forms that a download can have, those of the highest rank first."""
        spec = self.wire
        ranks = [spec.tensors[f"{path}.lora_A"].shape[0] for path in paths_of(spec)]
        space = max((spec.tensors[name].shape[_axis(name)] for name in spec.received), default=0)
        for rank in (ALL_ROWS, *range(max(ranks, default=1) - 1, 0, -1)):
            yield from (Form(rank, num) for num in range(space + 1))
            if space:
                yield Form(rank, "dense")

    def _size(self, form: Form, name: str) -> int | None:
        """The rows or columns of a factor that travel; None for a tensor that is no factor."""
        path, _, factor = name.rpartition("/")[2].rpartition(".")
        size = self.wire.tensors[name].shape[_axis(name)] if factor in (*FACTORS, *CARRIED) else 0
        if factor in FACTORS:
            return min(form.rank, size)
        if factor not in CARRIED:
            return None
        if form.rows != "dense":
            return min(form.rows, size)
        return 0 if factor == self._identity(path) else size

    def _identity(self, path: str) -> str:
        """The factor of `path` that is the identity in dense form."""
        rows, *columns = self.wire.tensors[f"{path}.{CARRIED[0]}"].shape
        return CARRIED[0] if math.prod(columns) == rows else CARRIED[1]


def _axis(name: str) -> int:
    """The axis of a factor along which it has the rank of its pair."""
    return 0 if name.endswith("_A") else 1


def _resized(name: str, tensor: TensorSpec, size: int | None) -> TensorSpec:
    shape = list(tensor.shape)
    shape[_axis(name)] = size or 0
    return replace(tensor, shape=tuple(shape))


def _cut(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor if tuple(tensor.shape) == shape else tensor.narrow(_axis(name), 0, shape[_axis(name)])


def _filled(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) == shape:
        return tensor
    wide = torch.zeros(shape, dtype=tensor.dtype)
    _cut(name, wide, tuple(tensor.shape)).copy_(tensor)
    return wide
