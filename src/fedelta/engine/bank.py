"""The tuned tensors of all lanes, one row a lane.

Every tuned tensor of the model becomes a view of a matrix [K, P + S]. Loading a client, taking its delta and every
optimizer update are then operations on rows, whatever the number of tensors.

Shapes: K lanes, P trained scalars, S scalars of statistics, both with gaps of at most 15 zeros between tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fedelta.params import Params, ParamSpec

_NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class LaneBank:
    """Values, gradients and anchors of the tuned tensors; `grads_KP` [K, P] has no place for statistics.

    Args:
        module: edited: its tuned tensors are re-pointed into the bank, values kept.
        spec: names and shapes of the tuned tensors.
        num_lanes: K; tensors without a lane axis are allowed when it is 1.
    """

    def __init__(self, module: nn.Module, spec: ParamSpec, num_lanes: int) -> None:
        self.spec = spec
        like = module.get_parameter(spec.names[0])
        self._places, num_trained, row_length = _lay_out(spec)
        self._values = torch.zeros(num_lanes, row_length, device=like.device, dtype=like.dtype)
        self._anchors = torch.zeros_like(self._values)
        # What optimizers and local rules see: the trained part of every row.
        self.values_KP = self._values[:, :num_trained]
        self.anchors_KP = self._anchors[:, :num_trained]
        self.grads_KP = torch.zeros_like(self.values_KP, memory_format=torch.contiguous_format)
        # What is added to every gradient; most strategies add nothing, and need no memory for it.
        self.offsets_KP: Tensor | None = None
        # True where a scalar stays at its anchor [K, P + S]; without such a client there is no need for memory.
        self._held: Tensor | None = None
        self._parameters: list[nn.Parameter] = []
        self._grads: list[Tensor] = []
        for name in spec:
            self._adopt(module.get_parameter(name), name)

    def load(self, lane: int, params: Mapping[str, Tensor], local: Mapping[str, Tensor] = _NOTHING) -> None:
        """Puts `params` into `lane` as its values and its anchor; a name that is absent keeps its value.

        Args:
            lane: number of the lane.
            params: anchors, by name.
            local: values that differ from their anchors.
        """
        self._fill(lane, params)
        self._anchors[lane] = self._values[lane]
        self._fill(lane, local)

    def steer(self, lane: int, offset: Mapping[str, Tensor]) -> None:
        """What is added to every gradient of `lane`, by name of trained tensors; zero for names that are absent."""
        if self.offsets_KP is None:
            if not offset:
                return
            self.offsets_KP = torch.zeros_like(self.grads_KP)
        self.offsets_KP[lane] = 0
        for name, tensor in offset.items():
            self.offsets_KP[lane, self._places[name]] = tensor.to(self.offsets_KP).reshape(-1)

    def confine(self, lane: int, names: Collection[str] | None) -> None:
        """Names the tensors of `lane` that may move, for `put_back`; None: all of them."""
        if self._held is None:
            if names is None:
                return
            self._held = torch.zeros_like(self._values, dtype=torch.bool)
        self._held[lane] = names is not None
        for name in names or ():
            self._held[lane, self._places[name]] = False

    def put_back(self, num_lanes: int) -> None:
        """In the first `num_lanes` lanes, gives every scalar that may not move the value of its anchor.

        Whatever moved it, a gradient, weight decay, momentum, the statistics of a norm, has then not happened.
        """
        if self._held is not None:
            values = self._values[:num_lanes]
            values.copy_(torch.where(self._held[:num_lanes], self._anchors[:num_lanes], values))

    def backward(self, loss: Tensor) -> None:
        """Puts the gradient of the scalar `loss` into `grads_KP`; a tensor that it does not reach gets zeros."""
        # Not `loss.backward()`: gradients that are rows of a matrix are not laid out as autograd wants to add to.
        grads = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        torch._foreach_copy_(self._grads, list(grads))

    def read(self, lane: int) -> Params:
        """A copy of the values of `lane`."""
        return self._split(self._values[lane].clone())

    def gradient(self, lane: int) -> Params:
        """A copy of the last gradient of the trained tensors of `lane`."""
        row_P = self.grads_KP[lane].clone()
        return {
            name: row_P[where].view(self.spec.tensors[name].shape)
            for name, where in self._places.items()
            if self.spec.tensors[name].trained
        }

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Gives all lanes the values and anchors back that they have now."""
        values, anchors = self._values.clone(), self._anchors.clone()
        try:
            yield
        finally:
            self._values.copy_(values)
            self._anchors.copy_(anchors)

    def delta(self, lane: int) -> Params:
        """Values minus anchors of `lane`, a new tensor each."""
        return self._split(self._values[lane] - self._anchors[lane])

    def move(self, source: int, target: int) -> None:
        """Copies what lane `source` has over what lane `target` has."""
        self._values[target] = self._values[source]
        self._anchors[target] = self._anchors[source]
        if self.offsets_KP is not None:
            self.offsets_KP[target] = self.offsets_KP[source]
        if self._held is not None:
            self._held[target] = self._held[source]

    def _fill(self, lane: int, params: Mapping[str, Tensor]) -> None:
        for name, tensor in params.items():
            self._values[lane, self._places[name]] = tensor.to(self._values).reshape(-1)

    def _adopt(self, parameter: nn.Parameter, name: str) -> None:
        values = self._view(self._values, name)
        has_lanes = parameter.shape == values.shape
        own = values if has_lanes else values[0]
        own.copy_(parameter.detach())
        parameter.data = own
        if self.spec.tensors[name].trained:
            grads = self._view(self.grads_KP, name)
            self._parameters.append(parameter)
            self._grads.append(grads if has_lanes else grads[0])

    def _view(self, matrix_KP: Tensor, name: str) -> Tensor:
        return matrix_KP[:, self._places[name]].view(matrix_KP.shape[0], *self.spec.tensors[name].shape)

    def _split(self, row_P: Tensor) -> Params:
        return {name: row_P[where].view(self.spec.tensors[name].shape) for name, where in self._places.items()}


def _lay_out(spec: ParamSpec) -> tuple[dict[str, slice], int, int]:
    """Where each tensor lies in a row, the length of the trained part of a row, and that of a row.

    Statistics come last. Tensors begin at multiples of 64 bytes, as if each had been allocated on its own: matrix
    products and convolutions are slower on others.
    """
    offsets, ends = {}, [0]
    for trained in (True, False):
        start = ends[-1]
        for name, tensor in spec.tensors.items():
            if tensor.trained == trained:
                offsets[name] = slice(start, start + tensor.numel)
                start += -(-tensor.numel // 16) * 16
        ends.append(start)
    return {name: offsets[name] for name in spec}, ends[1], ends[2]
