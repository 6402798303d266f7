"""The tuned tensors of all lanes, one row a lane.

Every tuned tensor of the model becomes a view of a matrix [K, P]. Loading a client, taking its delta and every
optimizer update are then operations on rows, whatever the number of tensors.

Shapes: K lanes, P tuned scalars, and gaps of at most 15 zeros between tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedelta.params import Params, ParamSpec


class LaneBank:
    """Values, gradients and anchors of the tuned tensors.

    Args:
        module: edited: its tuned tensors are re-pointed into the bank, values kept.
        spec: names and shapes of the tuned tensors.
        num_lanes: K; tensors without a lane axis are allowed when it is 1.
    """

    def __init__(self, module: nn.Module, spec: ParamSpec, num_lanes: int) -> None:
        self.spec = spec
        like = module.get_parameter(spec.names[0])
        self._offsets, row_length = _lay_out(spec)
        self.values_KP = torch.zeros(num_lanes, row_length, device=like.device, dtype=like.dtype)
        self.grads_KP = torch.zeros_like(self.values_KP)
        self.anchors_KP = torch.zeros_like(self.values_KP)
        self._parameters: list[nn.Parameter] = []
        self._grads: list[Tensor] = []
        for name in spec:
            self._adopt(module.get_parameter(name), name)

    def load(self, lane: int, params: Mapping[str, Tensor]) -> None:
        """Puts `params` into `lane` as its values and its anchor; a name that is absent keeps its value."""
        for name, tensor in params.items():
            self.values_KP[lane, self._offsets[name]] = tensor.to(self.values_KP).reshape(-1)
        self.anchors_KP[lane] = self.values_KP[lane]

    def backward(self, loss: Tensor) -> None:
        """Puts the gradient of the scalar `loss` into `grads_KP`; a tensor that it does not reach gets zeros."""
        # Not `loss.backward()`: gradients that are rows of a matrix are not laid out as autograd wants to add to.
        grads = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        torch._foreach_copy_(self._grads, list(grads))

    def read(self, lane: int) -> Params:
        """A copy of the values of `lane`."""
        return self._split(self.values_KP[lane].clone())

    def delta(self, lane: int) -> Params:
        """Values minus anchors of `lane`, a new tensor each."""
        return self._split(self.values_KP[lane] - self.anchors_KP[lane])

    def move(self, source: int, target: int) -> None:
        """Copies values and anchors of lane `source` over those of lane `target`."""
        self.values_KP[target] = self.values_KP[source]
        self.anchors_KP[target] = self.anchors_KP[source]

    def _adopt(self, parameter: nn.Parameter, name: str) -> None:
        values = self._view(self.values_KP, name)
        grads = self._view(self.grads_KP, name)
        if parameter.shape != values.shape:
            values, grads = values[0], grads[0]
        values.copy_(parameter.detach())
        parameter.data = values
        self._parameters.append(parameter)
        self._grads.append(grads)

    def _view(self, matrix_KP: Tensor, name: str) -> Tensor:
        return matrix_KP[:, self._offsets[name]].view(matrix_KP.shape[0], *self.spec.tensors[name].shape)

    def _split(self, row_P: Tensor) -> Params:
        return {name: row_P[where].view(self.spec.tensors[name].shape) for name, where in self._offsets.items()}


def _lay_out(spec: ParamSpec) -> tuple[dict[str, slice], int]:
    """Where each tensor lies in a row, and the length of a row.

    Tensors begin at multiples of 64 bytes, as if each had been allocated on its own: matrix products and
    convolutions are slower on others.
    """
    offsets, start = {}, 0
    for name, tensor in spec.tensors.items():
        offsets[name] = slice(start, start + tensor.numel)
        start += -(-tensor.numel // 16) * 16
    return offsets, start
