"""The tuned tensors of all lanes as one matrix, with one row per lane.

Every tuned tensor of the model becomes a view of a matrix [K, P + S]. Loading a client, reading its delta and each
optimizer update are then operations on rows; their number does not grow with the number of tensors.

Shapes: K lanes, P trained scalars, S scalars of statistics, both with gaps of at most 15 zeros between tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fedelta.engine.products import Change, DenseLayers, Gradient, Use, dense, times_written
from fedelta.params import Params, ParamSpec

_NO_TENSORS: Mapping[str, Tensor] = MappingProxyType({})


class LaneBank:
    """Values, gradients and anchors of the tuned tensors of every lane.

    Args:
        module: changed in place: its tuned tensors become views of the bank and keep their values.
        spec: names and shapes of the tuned tensors.
        num_lanes: K; with one lane the tensors may lack a lane axis.
        shares_values: whether all lanes have the values and anchors of lane 0, as the examples of one client do; the
            matrices of values and anchors then have one row, and only gradients differ.
        by_tensor: with one lane, whether gradients stay where autograd writes them, a matrix for each tensor.

    Attributes:
        values_KP: the trained part of every row [K, P], which optimizers and local rules change.
        anchors_KP: the anchors of these scalars [K, P].
        offsets_KP: added to every gradient [K, P]; None until a strategy steers a lane.
        dense_layers: by tensor, the layers whose gradients become products if their use is noted; None for none.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: ParamSpec,
        num_lanes: int,
        *,
        shares_values: bool = False,
        by_tensor: bool = False,
    ) -> None:
        self.spec = spec
        self.num_lanes = num_lanes
        like = module.get_parameter(spec.names[0])
        self._places, num_trained, row_length = _lay_out(spec)
        self._values = torch.zeros(1 if shares_values else num_lanes, row_length, device=like.device, dtype=like.dtype)
        self._anchors = torch.zeros_like(self._values)
        self.values_KP = self._values[:, :num_trained]
        self.anchors_KP = self._anchors[:, :num_trained]
        # Allocated on first use: most strategies add no offset, and most clients train every tensor.
        self.offsets_KP: Tensor | None = None
        self._pinned: Tensor | None = None  # [K, P + S], True where a scalar stays at its anchor
        self._trained = [name for name, tensor in spec.tensors.items() if tensor.trained]
        self._parameters: list[nn.Parameter] = []
        self.by_tensor = by_tensor
        self.dense_layers = DenseLayers(module, self._trained) if by_tensor else None
        self._grads: list[Gradient] = []  # of the last loss, by tensor
        self._rows = self._values.unbind(), self._anchors.unbind()
        # The tensors that a lane was last filled with, and the row of them: most strategies send all clients the same.
        self._recent: list[tuple[Tensor, float]] = []  # with how often they had been written to
        self._recent_row: Tensor | None = None
        for name in spec:
            self._adopt(module.get_parameter(name), name)

    @cached_property
    def grads_KP(self) -> Tensor:  # noqa: N802  named like the other matrices
        """The gradients [K, P] unless they stay with autograd; statistics have none."""
        return self.values_KP.new_zeros(self.num_lanes, self.values_KP.shape[1])

    @cached_property
    def _grads_in_rows(self) -> list[Tensor]:
        """`grads_KP` as views with the shapes of the parameters."""
        views = (self._view(self.grads_KP, name) for name in self._trained)
        return [
            view if view.dim() == parameter.dim() else view[0]
            for view, parameter in zip(views, self._parameters, strict=True)
        ]

    def matrices(self, of_all: Tensor, num_lanes: int) -> list[Tensor]:
        """The first lanes of a matrix [K, P], as the optimizer gets them: as it is, or by tensor [1, n]."""
        if not self.by_tensor:
            return [of_all[:num_lanes]]
        return [of_all[:, self._places[name]] for name in self._trained]

    def load(self, lane: int, params: Mapping[str, Tensor], local: Mapping[str, Tensor] = _NO_TENSORS) -> None:
        """Sets the values and anchors of `lane`; a tensor that `params` lacks keeps its value as its anchor.

        Args:
            lane: number of the lane, from 0.
            params: anchors, by name.
            local: values that differ from their anchors, by name.
        """
        self._settle(self._changes.keys() - params.keys())
        if self._recent_row is not None and self._are_recent(params):
            for rows in self._rows:
                rows[lane].copy_(self._recent_row)
        elif unchanged := [name for name, change in self._changes.items() if change.is_of(params.get(name))]:
            self._fill(lane, {name: tensor for name, tensor in params.items() if name not in unchanged})
            loaded = [place for name, place in self._places.items() if name not in unchanged]
            torch._foreach_copy_([self._anchors[lane, it] for it in loaded], [self._values[lane, it] for it in loaded])
        else:
            self._fill(lane, params)
            self._anchors[lane] = self._values[lane]
            if self.num_lanes > 1 and len(params) == len(self._places):
                self._recent = [(tensor, times_written(tensor)) for tensor in params.values()]
                self._recent_row = self._rows[1][lane].clone()
        self._fill(lane, local)
        for name, change in self._changes.items():
            change.restart(None if name in local else params.get(name))

    def steer(self, lane: int, offset: Mapping[str, Tensor]) -> None:
        """Sets what is added to every gradient of `lane`, by name of a trained tensor; absent names get zero."""
        if self.offsets_KP is None:
            if not offset:
                return
            self.offsets_KP = torch.zeros_like(self.values_KP, memory_format=torch.contiguous_format)
        self.offsets_KP[lane] = 0
        for name, tensor in offset.items():
            self.offsets_KP[lane, self._places[name]] = tensor.to(self.offsets_KP).reshape(-1)

    def confine(self, lane: int, names: Collection[str] | None) -> None:
        """Sets which tensors of `lane` are trained; None means all. `reset_pinned` holds the others in place."""
        if self._pinned is None:
            if names is None:
                return
            self._pinned = torch.zeros_like(self._values, dtype=torch.bool)
        self._pinned[lane] = names is not None
        for name in names or ():
            self._pinned[lane, self._places[name]] = False

    @property
    def pinned_P(self) -> Tensor | None:  # noqa: N802  named like the matrices
        """Which of lane 0's trained scalars stay at their anchor; None if every tensor is trained in every lane."""
        return None if self._pinned is None else self._pinned[0, : self.values_KP.shape[1]]

    def reset_pinned(self, num_lanes: int) -> None:
        """Sets every scalar that is not trained back to its anchor, in the first `num_lanes` lanes.

        This undoes gradients, weight decay, momentum and the running statistics of norms alike.
        """
        if self._pinned is not None:
            self._settle()
            values = self._values[:num_lanes]
            values.copy_(torch.where(self._pinned[:num_lanes], self._anchors[:num_lanes], values))

    def backward(self, loss: Tensor) -> None:
        """Computes the gradient of the scalar `loss`, zeros for tensors that it does not depend on."""
        if self.dense_layers is not None:
            self._grads = self._by_tensor(loss, self.dense_layers.take())
            return
        # `loss.backward()` cannot accumulate into gradients that are rows of a larger matrix.
        grads = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        torch._foreach_copy_(self._grads_in_rows, list(grads))

    def _by_tensor(self, loss: Tensor, uses: Mapping[str, Use]) -> list[Gradient]:
        sources = [
            uses[name].outputs if name in uses else parameter
            for name, parameter in zip(self._trained, self._parameters, strict=True)
        ]
        # PyTorch takes a mixture, which its types do not know.
        of_sources = torch.autograd.grad(loss, sources, allow_unused=True)  # type: ignore[arg-type]
        grads: list[Gradient] = []
        for name, parameter, grad in zip(self._trained, self._parameters, of_sources, strict=True):
            if name in uses:
                grads.append(uses[name].product(grad, self._changes[name]))
                continue
            grads.append((torch.zeros_like(parameter) if grad is None else grad.contiguous()).view(1, -1))
            if name in self._changes:
                self._changes[name].is_all = False
        return grads

    def gradients(self, num_lanes: int) -> list[Gradient]:
        """The last gradients of the first lanes, as matrices; gives them away, so that their memory serves again."""
        if not self.by_tensor:
            return [self.grads_KP[:num_lanes]]
        grads, self._grads = self._grads, []
        return grads

    def read(self, lane: int) -> Params:
        """A copy of the values of `lane`."""
        self._settle()
        return self._split(self._values[lane].clone())

    def gradient(self, lane: int) -> Params:
        """A copy of the last gradient of the trained tensors of `lane`."""
        if self.by_tensor:
            rows = [dense(grad)[lane] for grad in self._grads]
        else:
            rows = [self.grads_KP[lane, self._places[name]] for name in self._trained]
        return {
            name: row.clone().view(self.spec.tensors[name].shape) for name, row in zip(self._trained, rows, strict=True)
        }

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Restores the values and anchors of all lanes when the context ends."""
        self._settle()
        values, anchors = self._values.clone(), self._anchors.clone()
        try:
            yield
        finally:
            for change in self._changes.values():
                change.restart(None)
            self._values.copy_(values)
            self._anchors.copy_(anchors)

    def delta(self, lane: int) -> Params:
        """Values minus anchors of `lane`, as new tensors on the CPU."""
        products = {name: change for name, change in self._changes.items() if change.is_all}
        if not products:
            self._settle()
            return self._split((self._values[lane] - self._anchors[lane]).cpu())
        values, anchors = self._split(self._values[lane]), self._split(self._anchors[lane])
        deltas = self._split(torch.empty_like(self._values[lane]))
        for name, delta in deltas.items():
            if name in products:
                products[name].write(delta)
                continue
            if name in self._changes:
                self._changes[name].settle(values[name])
            torch.sub(values[name], anchors[name], out=delta)
        return deltas

    def deltas(self, lanes: Sequence[int]) -> list[Params]:
        """`delta` of each of `lanes`; if they are several, the tensors of a lane lie side by side."""
        if len(lanes) == 1:
            return [self.delta(lanes[0])]
        changes = (self._values[lanes] - self._anchors[lanes]).cpu()
        without_gaps = torch.cat([changes[:, place] for place in self._places.values()], dim=1)
        parts = without_gaps.split([self.spec.tensors[name].numel for name in self._places], dim=1)
        by_tensor = [
            part.view(len(lanes), *self.spec.tensors[name].shape).unbind()
            for name, part in zip(self._places, parts, strict=True)
        ]
        return [dict(zip(self._places, of_lane, strict=True)) for of_lane in zip(*by_tensor, strict=True)]

    def move(self, source: int, target: int) -> None:
        """Copies the values, anchors, offset and pinned scalars of lane `source` to lane `target`."""
        self._values[target] = self._values[source]
        self._anchors[target] = self._anchors[source]
        if self.offsets_KP is not None:
            self.offsets_KP[target] = self.offsets_KP[source]
        if self._pinned is not None:
            self._pinned[target] = self._pinned[source]

    def _are_recent(self, params: Mapping[str, Tensor]) -> bool:
        """Whether these are all tensors, and those of `_recent` as they were; their names are in the same order."""
        return len(params) == len(self._recent) and all(
            tensor is recent and times_written(tensor) == num
            for tensor, (recent, num) in zip(params.values(), self._recent, strict=True)
        )

    def _fill(self, lane: int, params: Mapping[str, Tensor]) -> None:
        if not params:
            return
        tensors = [tensor.to(self._values.dtype).reshape(-1) for tensor in params.values()]
        if self._values.device.type != "cpu":  # in one transfer
            sizes = list(map(len, tensors))
            tensors = list(torch.cat(tensors).to(self._values.device).split(sizes))
        torch._foreach_copy_([self._values[lane, self._places[name]] for name in params], tensors)

    @property
    def _changes(self) -> Mapping[str, Change]:
        """What wide weights have changed by, apart from their values."""
        return {} if self.dense_layers is None else self.dense_layers.changes

    def _settle(self, names: Collection[str] | None = None) -> None:
        """Adds the changes of these wide weights to their values; None: of all."""
        for name in self._changes if names is None else names:
            self._changes[name].settle(self._view(self._values, name)[0])

    def _adopt(self, parameter: nn.Parameter, name: str) -> None:
        values = self._view(self._values, name)
        has_lanes = parameter.dim() == values.dim()
        values.copy_(parameter.detach()[: len(values)] if has_lanes else parameter.detach())
        parameter.data = values.expand(self.num_lanes, *values.shape[1:]) if has_lanes else values[0]
        if self.spec.tensors[name].trained:
            self._parameters.append(parameter)

    def places(self, names: Collection[str]) -> list[slice]:
        """The columns of these trained tensors in `grads_KP`."""
        return [self._places[name] for name in names]

    def _view(self, matrix: Tensor, name: str) -> Tensor:
        """The columns of tensor `name` in a matrix [K, P + S] or [K, P], as [K, *shape]."""
        return matrix[:, self._places[name]].view(matrix.shape[0], *self.spec.tensors[name].shape)

    def _split(self, row: Tensor) -> Params:
        """The tensors of a row [P + S], as views of it."""
        return {name: row[place].view(self.spec.tensors[name].shape) for name, place in self._places.items()}


def _lay_out(spec: ParamSpec) -> tuple[dict[str, slice], int, int]:
    """The place of each tensor in a row, the length of a row's trained part, and the length of a row.

    Statistics come last. Every tensor begins at a multiple of 64 bytes (16 float32 values), because matrix products and
    convolutions are slower on unaligned memory.
    """
    places, ends = {}, [0]
    for trained in (True, False):
        start = ends[-1]
        for name, tensor in spec.tensors.items():
            if tensor.trained == trained:
                places[name] = slice(start, start + tensor.numel)
                start += -(-tensor.numel // 16) * 16
        ends.append(start)
    return {name: places[name] for name in spec}, ends[1], ends[2]
